"""The script of the page about trajectories: the map of steps and positions, and what is told of a cell."""

SCRIPT = r"""
"use strict";
const scenes = JSON.parse(document.getElementById("scenes").textContent);
const $ = id => document.getElementById(id), map = $("map"), pen = map.getContext("2d");
const left = 34, top_ = 16;
let scene = scenes[0], at = null, size = 14;

function tint(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function parts(hex) { return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)); }
function between(a, b, share) {
  const [x, y] = [parts(a), parts(b)];
  return `rgb(${x.map((v, i) => Math.round(v + share * (y[i] - v))).join(",")})`;
}
function level(i, s) {
  switch ($("colour").value) {
    case "probability": return [scene.probability[i][s] / 1000, "--high"];
    case "entropy": return [Math.min(scene.entropy[i][s] / 600, 1), "--wrong"];
    default: return [0.85, scene.right[i][s] ? "--high" : "--wrong"];
  }
}
function draw() {
  const steps = scene.predicted[0].length, columns = scene.places.length, ratio = window.devicePixelRatio || 1;
  const room = map.parentElement.clientWidth - left - 2;
  size = Math.max(10, Math.min(22, Math.floor(room / columns)));
  const tall = Math.max(8, Math.min(16, size)), wide = left + columns * size + 2, high = top_ + steps * tall + 4;
  map.style.width = wide + "px"; map.style.height = high + "px";
  map.width = wide * ratio; map.height = high * ratio; map.tall = tall;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0); pen.clearRect(0, 0, wide, high);
  pen.font = "11px system-ui, sans-serif"; pen.fillStyle = tint("--soft"); pen.textAlign = "right";
  const low = tint("--low"), edge = tint("--edge"), tones = {};
  for (const name of ["--high", "--wrong"]) tones[name] = tint(name);
  for (let s = 0; s < steps; s++) {
    pen.fillStyle = tint("--soft");
    if (s % 4 === 0 || s === steps - 1) pen.fillText(s, left - 6, top_ + s * tall + tall - 2);
  }
  pen.textAlign = "center"; pen.fillText("position", left + columns * size / 2, 10);
  for (let i = 0; i < columns; i++) for (let s = 0; s < steps; s++) {
    const [share, tone] = level(i, s);
    pen.fillStyle = between(low, tones[tone], share);
    pen.fillRect(left + i * size, top_ + s * tall, size - 1, tall - 1);
  }
  for (let i = 0; i < columns; i++) {
    mark(i, scene.committed[i], tall, edge, false); mark(i, scene.revealed[i], tall, edge, true);
  }
  if (at) {
    pen.strokeStyle = edge; pen.lineWidth = 2;
    pen.strokeRect(left + at[0] * size - .5, top_ + at[1] * tall - .5, size, tall);
  }
}
function mark(i, s, tall, edge, full) {
  pen.beginPath();
  const middle = [left + i * size + (size - 1) / 2, top_ + s * tall + (tall - 1) / 2];
  pen.arc(...middle, full ? 1.8 : Math.min(size, tall) * .33, 0, 7);
  pen.lineWidth = 1.2; pen.strokeStyle = pen.fillStyle = edge;
  if (full) pen.fill(); else pen.stroke();
}
function quoted(text) { return JSON.stringify(text); }
function tell() {
  if (!at) { $("said").textContent = "Nothing is pointed at."; words(0, -1); return; }
  const [i, s] = at, word = scene.words[scene.predicted[i][s]];
  const p = (scene.probability[i][s] / 1000).toFixed(3), h = (scene.entropy[i][s] / 100).toFixed(2);
  const how = s > scene.revealed[i] ? "written" : s === scene.revealed[i] ? "written at this step" : "open";
  $("said").textContent = `Step ${s}, position ${scene.places[i]} (${scene.kinds[i]}): ${quoted(word)} ` +
    `with probability ${p}, entropy ${h} nats, ${how}, ` +
    `${scene.right[i][s] ? "right" : "wrong: it was " + quoted(scene.truth[i])}. ` +
    `Committed at step ${scene.committed[i]}, written at step ${scene.revealed[i]}.`;
  words(s, i);
}
function words(s, here) {
  const box = $("words"), index = new Map(scene.places.map((place, i) => [place, i]));
  box.replaceChildren();
  scene.pieces.forEach((piece, place) => {
    const i = index.get(place);
    if (i === undefined) { box.append(piece); return; }
    const span = document.createElement("span");
    if (s > scene.revealed[i]) {
      span.textContent = scene.words[scene.predicted[i][s]]; span.className = scene.right[i][s] ? "right" : "wrong";
    } else {
      span.textContent = " \u2591 "; span.className = "blank open";
    }
    if (i === here) span.classList.add("here");
    box.append(span);
  });
}
function point(event) {
  const box = map.getBoundingClientRect();
  const i = Math.floor((event.clientX - box.left - left) / size);
  const s = Math.floor((event.clientY - box.top - top_) / map.tall);
  if (i < 0 || s < 0 || i >= scene.places.length || s >= scene.predicted[0].length) return;
  if (at && at[0] === i && at[1] === s) return;
  at = [i, s]; draw(); tell();
}
map.addEventListener("pointermove", point);
map.addEventListener("pointerdown", point);
map.addEventListener("keydown", event => {
  const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!move) return;
  event.preventDefault();
  const [i, s] = at || [0, 0], most = [scene.places.length - 1, scene.predicted[0].length - 1];
  at = [i + move[0], s + move[1]].map((value, axis) => Math.max(0, Math.min(most[axis], value)));
  draw(); tell();
});
scenes.forEach((each, index) => $("scene").add(new Option(`${each.cell}, ${each.number}`, index)));
$("scene").addEventListener("change", () => { scene = scenes[$("scene").value]; at = null; draw(); tell(); });
$("colour").addEventListener("change", draw);
window.addEventListener("resize", draw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
at = [0, Math.floor(scene.predicted[0].length / 2)];
draw(); tell();
"""
