// Age of the page, as the state of a run that trains is that of then.

const age = document.getElementById("age");
const minutes = (Date.now() / 1000 - Number(age.dataset.written)) / 60;
const [count, unit] = minutes < 120 ? [minutes, "minutes"]
  : minutes < 2880 ? [minutes / 60, "hours"] : [minutes / 1440, "days"];
if (minutes >= 2) age.textContent = `, ${Math.floor(count)} ${unit} ago`;
