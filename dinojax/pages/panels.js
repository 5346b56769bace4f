// Panels of pictures; runs in a function of its own, see page.py.

const parse = (root) =>
  JSON.parse(root.querySelector('script[type="application/json"]').textContent);

const load = async (uri) => {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
};

const make = (kind, className, text = "") => {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
};

// Similarity of patches.

const pixelsOf = (image) => {
  const canvas = make("canvas", "");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, canvas.width, canvas.height).data;
};

const heat = (stops, part) => {
  const place = Math.min(Math.max(part, 0), 1) * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  const rest = place - below;
  return stops[below].map((x, i) => x * (1 - rest) + stops[below + 1][i] * rest);
};

const openSimilarity = async (figure, data) => {
  const [rows, columns] = data.grid;
  const count = rows * columns;
  const sources = data.images[Number(figure.dataset.image)];
  const chooser = figure.querySelector(".pictures-choose");
  const map = figure.querySelector(".pictures-heat");
  const output = figure.querySelector("output");
  const image = await load(sources.image);
  const matrix = pixelsOf(await load(sources.matrix));
  let chosen = Math.floor(rows / 2) * columns + Math.floor(columns / 2);

  const draw = () => {
    const cosines = new Float64Array(count);
    for (let i = 0; i < count; i++) {
      cosines[i] = matrix[4 * (chosen * count + i)] / 127.5 - 1;
    }
    const low = Math.min(...cosines);
    const high = Math.max(...cosines);
    const pen = map.getContext("2d");
    const pixels = pen.createImageData(columns, rows);
    for (let i = 0; i < count; i++) {
      const colour = heat(data.stops, high > low ? (cosines[i] - low) / (high - low) : 0);
      pixels.data.set([...colour, 255], 4 * i);
    }
    pen.putImageData(pixels, 0, 0);

    const brush = chooser.getContext("2d");
    const width = chooser.width / columns;
    const height = chooser.height / rows;
    const row = Math.floor(chosen / columns);
    const column = chosen % columns;
    brush.imageSmoothingEnabled = image.naturalWidth > chooser.width / 2;
    brush.drawImage(image, 0, 0, chooser.width, chooser.height);
    for (const [line, colour] of [[4, "#000"], [2, "#fff"]]) {
      brush.lineWidth = line;
      brush.strokeStyle = colour;
      brush.strokeRect(column * width, row * height, width, height);
    }
    output.textContent =
      `patch in row ${row + 1}, column ${column + 1}: similarity from ` +
      `${low.toFixed(2)} (dark) to 1 (light)`;
    figure.dataset.chosen = String(chosen);
  };

  chooser.addEventListener("click", (event) => {
    const box = chooser.getBoundingClientRect();
    const at = (offset, size, parts) =>
      Math.min(Math.max(Math.floor((offset / size) * parts), 0), parts - 1);
    chosen =
      at(event.clientY - box.top, box.height, rows) * columns +
      at(event.clientX - box.left, box.width, columns);
    draw();
  });
  chooser.addEventListener("keydown", (event) => {
    const row = Math.floor(chosen / columns);
    const column = chosen % columns;
    const to = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    if (to[0] < 0 || to[0] >= rows || to[1] < 0 || to[1] >= columns) return;
    chosen = to[0] * columns + to[1];
    draw();
  });
  draw();
};

// Map of images.

const openMap = async (root, data) => {
  const plane = root.querySelector(".pictures-plane");
  const canvas = plane.querySelector("canvas");
  const hover = root.querySelector(".pictures-hover");
  const thumb = hover.querySelector("canvas").getContext("2d");
  const output = hover.querySelector("output");
  const mark = root.querySelector(".pictures-mark");
  const sprite = await load(data.sprite);
  const count = data.labels.length;
  const margin = 12;
  let view = 0;
  let only = null; // the class that is shown alone
  let current = -1;
  let zoom = { scale: 1, x: 0, y: 0 };
  let size = 1;
  let xs = new Float64Array(count);
  let ys = new Float64Array(count);
  let waiting = false;

  const visible = (i) => only === null || data.labels[i] === only;

  const place = () => {
    const points = data.views[view].points;
    const side = size - 2 * margin;
    for (let i = 0; i < count; i++) {
      xs[i] = ((points[2 * i] / data.extent) * side + margin) * zoom.scale + zoom.x;
      ys[i] = ((points[2 * i + 1] / data.extent) * side + margin) * zoom.scale + zoom.y;
    }
  };

  const draw = () => {
    waiting = false;
    const ratio = window.devicePixelRatio || 1;
    size = canvas.clientWidth || 1;
    const whole = Math.round(size * ratio);
    if (canvas.width !== whole || canvas.height !== whole) {
      canvas.width = canvas.height = whole;
    }
    place();
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size, size);
    const dot = (count > 2000 ? 3 : 6) * Math.min(Math.sqrt(zoom.scale), 3);
    const style = getComputedStyle(root);
    const none = style.getPropertyValue("--faint");
    let colour = null;
    for (const i of order) {
      if (!visible(i)) continue;
      if (xs[i] < -dot || ys[i] < -dot || xs[i] > size + dot || ys[i] > size + dot) {
        continue;
      }
      const wanted = data.colours[data.labels[i]] || none;
      if (wanted !== colour) pen.fillStyle = colour = wanted;
      pen.fillRect(xs[i] - dot / 2, ys[i] - dot / 2, dot, dot);
    }
  };

  const redraw = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(draw);
  };

  const show = (i) => {
    if (i === current) return;
    current = i;
    hover.hidden = mark.hidden = i < 0;
    if (i >= 0) {
      mark.style.left = `${xs[i] - 7}px`;
      mark.style.top = `${ys[i] - 7}px`;
      const side = data.side;
      thumb.imageSmoothingEnabled = side >= 64;
      thumb.drawImage(
        sprite,
        (i % data.columns) * side,
        Math.floor(i / data.columns) * side,
        side,
        side,
        0,
        0,
        128,
        128,
      );
      const label = data.classes[data.labels[i]];
      output.textContent = label === undefined ? data.names[i] : `${label}: ${data.names[i]}`;
      const room = size - 150;
      const left = xs[i] < size / 2 ? xs[i] + 14 : xs[i] - 160;
      hover.style.left = `${Math.min(Math.max(left, 0), Math.max(room, 0))}px`;
      hover.style.top = `${Math.max(Math.min(ys[i] - 70, size - 190), 0)}px`;
      root.dataset.current = String(i);
    }
  };

  const nearest = (x, y) => {
    let best = 20 * 20;
    let found = -1;
    for (let i = 0; i < count; i++) {
      const far = (xs[i] - x) ** 2 + (ys[i] - y) ** 2;
      if (far < best && visible(i)) {
        best = far;
        found = i;
      }
    }
    return found;
  };

  // The closest dot within 45 degrees of a direction.
  const towards = (dx, dy) => {
    let best = Infinity;
    let found = current;
    const x = current < 0 ? size / 2 : xs[current];
    const y = current < 0 ? size / 2 : ys[current];
    for (let i = 0; i < count; i++) {
      const along = (xs[i] - x) * dx + (ys[i] - y) * dy;
      const across = Math.abs((xs[i] - x) * dy - (ys[i] - y) * dx);
      if (i === current || !visible(i) || along <= 0 || across > along) continue;
      if (along + across < best) {
        best = along + across;
        found = i;
      }
    }
    return found;
  };

  const zoomAt = (factor, x = size / 2, y = size / 2) => {
    const scale = Math.min(Math.max(zoom.scale * factor, 1), 64);
    const ratio = scale / zoom.scale;
    const bound = (offset) => Math.min(Math.max(offset, size * (1 - scale)), 0);
    zoom = {
      scale,
      x: bound(x - (x - zoom.x) * ratio),
      y: bound(y - (y - zoom.y) * ratio),
    };
    show(-1);
    redraw();
  };

  const press = (buttons, chosen) =>
    buttons.forEach((button) =>
      button.setAttribute("aria-pressed", String(button === chosen)));

  const tools = root.querySelector(".pictures-tools");
  const methods = data.views.map((each, i) => {
    const button = make("button", "", each.name);
    button.type = "button";
    button.addEventListener("click", () => {
      view = i;
      press(methods, button);
      show(-1);
      redraw();
    });
    return button;
  });
  press(methods, methods[0]);
  const zooms = [
    ["+", "zoom in", () => zoomAt(1.6)],
    ["\u2212", "zoom out", () => zoomAt(1 / 1.6)],
    ["show all", "show all", () => zoomAt(1 / 64)],
  ].map(([text, name, action]) => {
    const button = make("button", "", text);
    button.type = "button";
    button.setAttribute("aria-label", name);
    button.addEventListener("click", action);
    return button;
  });
  tools.append(...methods, ...zooms);

  const legend = root.querySelector(".pictures-legend");
  const classes = data.classes.map((name, label) => {
    const button = make("button", "", name);
    button.type = "button";
    const swatch = make("span", "pictures-swatch");
    swatch.style.backgroundColor = data.colours[label];
    button.prepend(swatch);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      only = only === label ? null : label;
      press(classes, only === null ? null : button);
      show(-1);
      redraw();
    });
    return button;
  });
  legend.append(...classes);

  // Mixed, so that no class hides the others; the same each time.
  const order = Array.from({ length: count }, (_, i) => i);
  order.sort((a, b) => ((a * 2654435761) % 4096) - ((b * 2654435761) % 4096));

  let dragged = null;
  canvas.addEventListener("pointerdown", (event) => {
    dragged = { x: event.clientX - zoom.x, y: event.clientY - zoom.y };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => {
    dragged = null;
  });
  canvas.addEventListener("pointercancel", () => {
    dragged = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged && zoom.scale > 1) {
      const bound = (offset) => Math.min(Math.max(offset, size * (1 - zoom.scale)), 0);
      zoom = {
        scale: zoom.scale,
        x: bound(event.clientX - dragged.x),
        y: bound(event.clientY - dragged.y),
      };
      show(-1);
      redraw();
      return;
    }
    const box = canvas.getBoundingClientRect();
    show(nearest(event.clientX - box.left, event.clientY - box.top));
  });
  canvas.addEventListener("pointerleave", () => show(-1));
  canvas.addEventListener("blur", () => show(-1));
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      const factor = Math.exp(-event.deltaY / 300);
      zoomAt(factor, event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    const directions = {
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
    };
    const actions = {
      "+": () => zoomAt(1.6),
      "-": () => zoomAt(1 / 1.6),
      0: () => zoomAt(1 / 64),
      Escape: () => show(-1),
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (directions[event.key]) {
      event.preventDefault();
      show(towards(...directions[event.key]));
    } else if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  });
  new ResizeObserver(redraw).observe(plane);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  draw();
  root.dataset.ready = "true";
};

document.querySelectorAll(".pictures-similarity").forEach((root) => {
  const data = parse(root);
  root
    .querySelectorAll("figure")
    .forEach((figure) => openSimilarity(figure, data));
});
document.querySelectorAll(".pictures-map").forEach((root) => openMap(root, parse(root)));
