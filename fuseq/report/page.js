"use strict";
// Everything the page shows is in it already; this only lets people look closer. No text becomes
// markup here: texts are set as text.

document.documentElement.classList.add("live");

// Images that stand twice on the page are in it once.
for (const image of document.querySelectorAll("[data-same]")) {
  image.src = document.getElementById(image.dataset.same).src;
}

// The slider between the float and the int8 image; dragging on the image moves it too.
for (const figure of document.querySelectorAll(".compare")) {
  const stage = figure.querySelector(".stage"), slider = figure.querySelector("input");
  const show = () => stage.style.setProperty("--at", slider.value + "%");
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = 100 * (event.clientX - box.left) / box.width;
    show();
  };
  slider.addEventListener("input", show);
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  show();
}

// What a box is, beside the pointer, and the boxes of the other graph that belong to it.
const tip = document.getElementById("tip");
const nodes = [...document.querySelectorAll(".canvas .node")];
const groups = new Map();
const texts = new Map();
for (const node of nodes) {
  const group = node.dataset.group, title = node.querySelector("title");
  groups.set(group, [...(groups.get(group) || []), node]);
  texts.set(node, title.textContent);
  title.remove();
}

function light(node, on) {
  for (const other of groups.get(node.dataset.group)) other.classList.toggle("lit", on);
}

function place(event) {
  const right = event.clientX + 16 + tip.offsetWidth > innerWidth;
  const below = event.clientY + 16 + tip.offsetHeight > innerHeight;
  tip.style.left = Math.max(4, right ? event.clientX - 12 - tip.offsetWidth : event.clientX + 16) + "px";
  tip.style.top = Math.max(4, below ? event.clientY - 12 - tip.offsetHeight : event.clientY + 16) + "px";
}

// A click opens the value's charts, wherever the value stands in the list.
function open(anchor) {
  const details = document.getElementById(anchor);
  if (!details) return;
  if ("rest" in details.dataset) showAll();
  details.open = true;
  details.scrollIntoView({ block: "start" });
}

for (const node of nodes) {
  node.addEventListener("pointerenter", (event) => {
    tip.textContent = texts.get(node);
    tip.hidden = false;
    place(event);
    light(node, true);
  });
  node.addEventListener("pointermove", place);
  node.addEventListener("pointerleave", () => {
    tip.hidden = true;
    light(node, false);
  });
}

// And back: the value's box in the graph that was lowered.
const lowered = nodes.filter((node) => node.closest(".graph:last-child"));
for (const button of document.querySelectorAll(".locate")) {
  button.addEventListener("click", () => {
    const node = lowered.find((other) => other.dataset.node === button.dataset.node);
    document.querySelectorAll(".lit").forEach((other) => other.classList.remove("lit"));
    light(node, true);
    node.scrollIntoView({ block: "center", inline: "center" });
  });
}

const values = document.getElementById("values");
const more = document.getElementById("more");

function showAll() {
  values.classList.add("all");
  if (more) more.hidden = true;
}

if (more) more.addEventListener("click", showAll);

// Graphs: drag to move, buttons or Ctrl and the wheel to scale.
for (const figure of document.querySelectorAll(".graph")) {
  const canvas = figure.querySelector(".canvas"), svg = canvas.querySelector("svg");
  const width = Number(svg.getAttribute("width")), height = Number(svg.getAttribute("height"));
  const fit = () => Math.min(1, (canvas.clientWidth - 2) / width);
  let scale = 1, start = null, moved = false;

  function zoom(wanted, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const before = scale;
    scale = Math.min(3, Math.max(0.1, wanted));
    svg.setAttribute("width", width * scale);
    svg.setAttribute("height", height * scale);
    canvas.scrollLeft = (canvas.scrollLeft + x) * scale / before - x;
    canvas.scrollTop = (canvas.scrollTop + y) * scale / before - y;
  }

  for (const button of figure.querySelectorAll("[data-zoom]")) {
    const step = Number(button.dataset.zoom);
    button.addEventListener("click", () => zoom(step ? scale * 1.25 ** step : fit()));
  }
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(scale * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    moved = false;
    if (event.pointerType !== "mouse" || event.button) return; // fingers scroll by themselves
    start = { x: event.clientX, y: event.clientY, left: canvas.scrollLeft, top: canvas.scrollTop };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const dx = event.clientX - start.x, dy = event.clientY - start.y;
    moved = moved || Math.hypot(dx, dy) > 4;
    if (!moved) return;
    canvas.classList.add("dragged");
    canvas.scrollLeft = start.left - dx;
    canvas.scrollTop = start.top - dy;
  });
  for (const end of ["pointerup", "pointerleave"]) {
    canvas.addEventListener(end, () => {
      start = null;
      canvas.classList.remove("dragged");
    });
  }
  canvas.addEventListener("click", (event) => {
    const node = event.target.closest(".node");
    if (node && !moved && node.dataset.anchor) open(node.dataset.anchor);
  });
  zoom(Math.max(fit(), 0.55), 0, 0);
  canvas.scrollLeft = (canvas.scrollWidth - canvas.clientWidth) / 2;
}

// A link to a value opens it.
addEventListener("hashchange", () => open(location.hash.slice(1)));
if (location.hash) open(location.hash.slice(1));
