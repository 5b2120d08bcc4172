// A run as an animated SVG that needs nothing else: it loops, and where nothing moves the last picture is seen.

import { level, probability } from "./run.js";

const [COLUMNS, WIDE, HIGH, EDGE] = [72, 8.4, 25, 22]; // letters a line; pixels of a letter, a line, the margin
const HOLD = 3; // seconds that the last picture stays
const MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";

// `colours(name)` gives back, ink, soft, veil, gone, l0 to l4 and u0 to u4 as #rrggbb.
export function animation(run, colours) {
  const count = run.steps.length;
  const pause = Math.min(Math.max(6 / count, 0.08), 0.7); // seconds a step is shown
  const film = { count, pause, whole: (count + 1) * pause + HOLD };
  const parts = [];
  let [column, line] = [0, 0];
  const put = (length) => {
    if (column && column + length > COLUMNS) [column, line] = [0, line + 1];
    column += length;
    return [EDGE + (column - length) * WIDE, EDGE + 14 + line * HIGH];
  };
  for (const found of scenes(run)) {
    const last = found.at(-1);
    const lines = (last.cell.kind === "blank" ? "  " : spaced(last.cell.text)).split("\n");
    // A line's end takes a place where it is written, so that it can be seen.
    const first = lines[0] || (found.length > 1 ? "↵" : "");
    const place = put([...first].length);
    for (const scene of found) parts.push(during(scene, film, slot(scene.cell, place, first, colours)));
    for (const part of lines.slice(1)) {
      [column, line] = [0, line + 1];
      parts.push(during(last, film, words(part, put([...part].length), [...part].length, colours("ink"))));
    }
  }
  return framed(run, film, parts.filter(Boolean).join("\n"), line + 1, colours);
}

// The drawn text with its background, how far the run is, what it cost and what the colours mean.
function framed(run, { count, pause, whole }, drawn, lines, colours) {
  const [width, base] = [2 * EDGE + COLUMNS * WIDE, EDGE + lines * HIGH + 18];
  const [height, end, long] = [base + 40, width - EDGE, width - 2 * EDGE];
  const { forwards, written, rate } = run.cost(count);
  const note = (x, anchor, said) => tag("text", { x, y: base + 21, "text-anchor": anchor, fill: colours("soft"),
    "font-family": "system-ui, sans-serif", "font-size": 12 }, safe(said));
  const bars = [0, 1, 2, 3, 4].map((n) => tag("rect", { x: end - 110 + 15 * n, y: base + 11, width: 12, height: 12,
    rx: 2, fill: colours(`l${n}`), stroke: colours(`u${n}`) }));
  const grow = tag("animate", { attributeName: "width", values: `0;${long};${long}`,
    ...timed([0, (count + 1) * pause, whole], whole) });
  const picture = { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, width, height,
    "font-family": MONO, "font-size": 14 };
  return `${tag("svg", picture, [
    tag("title", {}, `${safe(run.label)}: ${written} tokens in ${forwards} forwards`),
    tag("rect", { width: "100%", height: "100%", rx: 10, fill: colours("back") }),
    drawn,
    tag("rect", { x: EDGE, y: base, height: 2, width: long, fill: colours("u4") }, grow),
    note(EDGE, "start", `${run.label}: ${written} tokens in ${forwards} forwards, ${rate.toFixed(2)} a forward`),
    note(end - 117, "end", "unsure"), ...bars, note(end, "end", "sure"),
  ].join("\n"))}\n`;
}

// How each position stands, and from which step to which: [[{cell, from, to}, ...], ...].
function scenes(run) {
  const all = run.tokens.map(() => []);
  for (let count = 0; count <= run.steps.length; count++) {
    run.cells(count).forEach((cell, at) => {
      const open = all[at].at(-1);
      const key = cell.kind === "written" ? cell.number : cell.gone ? "gone" : cell.kind;
      if (open?.key === key) open.to = count + 1;
      else all[at].push({ key, cell, from: count, to: count + 1 });
    });
  }
  return all;
}

// A position as it stands, in the place that its last text takes.
function slot(cell, place, last, colours) {
  const length = Math.max([...last].length, 1);
  if (cell.kind === "given") return words(last, place, length, colours("ink"));
  const indent = last.trim() ? last.length - last.trimStart().length : 0;
  const box = (more) => tag("rect", { x: place[0] + indent * WIDE, y: place[1] - 15, rx: 3, height: 20,
    width: (length - indent) * WIDE - 1, ...more });
  if (cell.kind === "blank" && !cell.gone) return box({ fill: colours("veil") });
  const text = spaced(cell.text).split("\n")[0] || (cell.text ? "↵" : "");
  const gone = colours("gone");
  if (cell.gone) {
    const struck = words(text, place, length, gone, { "text-decoration": "line-through" });
    return box({ fill: "none", stroke: gone, "stroke-dasharray": "3 2" }) + struck;
  }
  const name = level(probability(cell.write));
  const [fill, stroke] = name === "unknown" ? ["veil", "veil"] : [name, name.replace("l", "u")];
  return box({ fill: colours(fill), stroke: colours(stroke) }) + words(text, place, length, colours("ink"));
}

// One line of text; fonts differ in width, so its length is told, and an earlier text may be longer than the last.
function words(text, [x, y], length, fill, more = {}) {
  const body = text.trim();
  if (!body) return "";
  const indent = text.length - text.trimStart().length;
  const size = Math.min([...body].length, Math.max(length - indent, 1));
  const fit = { textLength: size * WIDE, lengthAdjust: "spacingAndGlyphs" };
  return tag("text", { x: x + indent * WIDE, y, ...fit, fill, ...more }, safe(body));
}

// What is drawn, seen only from one step to another.
function during({ from, to }, { count, pause, whole }, drawn) {
  const ever = to > count;
  if (!drawn || (from === 0 && ever)) return drawn;
  const beats = [[0, from === 0], ...(from ? [[from * pause, true]] : []), ...(ever ? [] : [[to * pause, false]])];
  const values = beats.map(([, on]) => (on ? "visible" : "hidden")).join(";");
  const times = timed(beats.map(([time]) => time), whole);
  const blink = tag("animate", { attributeName: "visibility", calcMode: "discrete", values, ...times });
  return tag("g", ever ? {} : { visibility: "hidden" }, drawn + blink);
}

const timed = (times, whole) => ({ keyTimes: times.map((time) => round(time / whole)).join(";"),
  dur: `${whole.toFixed(2)}s`, repeatCount: "indefinite" });

const round = (value) => Number(value.toFixed(4));

const spaced = (text) => text.replaceAll("\t", "    ").replaceAll("\r", "");

// An element with values that need no escape, around XML.
function tag(name, values, inside = "") {
  const put = (value) => (Number.isFinite(value) ? round(value) : value);
  const said = Object.entries(values).map(([key, value]) => ` ${key}="${put(value)}"`).join("");
  return `<${name}${said}${inside ? `>${inside}</${name}>` : "/>"}`;
}

// Text as XML, without what XML cannot hold.
function safe(text) {
  const plain = text.toWellFormed().replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "");
  return plain.replace(/[&<>]/g, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[letter]);
}
