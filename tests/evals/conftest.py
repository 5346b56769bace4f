"""What all tests of evaluations share: a look at the programs that they compile."""

import collectives
import pytest
import torch

torch.set_num_threads(1)  # More wait for each other, and each busily.


@pytest.fixture(autouse=True, scope="module")
def collectives_have_one_order():
  """Several processes would mix up collectives that XLA may start in any order."""
  with collectives.compiled() as programs:
    yield
    racing = {text.split(",")[0]: collectives.racing(text) for text in programs()}
  assert not any(racing.values()), racing
