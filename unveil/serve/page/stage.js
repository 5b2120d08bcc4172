// Where runs are watched: their text after a step, the replay of one or two of them in step, and what is kept of them.

import { animation } from "./picture.js";
import { level, probability, shown } from "./run.js";

const copy = (id) => document.getElementById(id).content.cloneNode(true);
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
export const dark = () => (document.documentElement.dataset.theme
  ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const tip = document.getElementById("tip");
const percent = (p) => (Number.isNaN(p) ? "unknown" : `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`);
export const secs = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(1));

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// What is kept

export async function clip(words) {
  try {
    await navigator.clipboard.writeText(words);
    return true;
  } catch {
    return false; // no clipboard without a secure context or the visitor's leave
  }
}

function file(name, content, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000); // the download has begun by then
}

// A colour of the page as it looks now; page.css writes each as light-dark(one, other).
function colour(name) {
  const pair = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).match(/#[0-9a-f]+/gi);
  return pair[dark() ? 1 : 0];
}

// Tooltip: one for all tokens, so that it can be hovered, dismissed by Escape and read as a description.

let pinned = null; // the token it speaks of
let leaving = 0;

function tell(pane, span) {
  clearTimeout(leaving);
  if (pinned !== span) hush();
  pinned = span;
  const at = Number(span.dataset.at);
  const { write } = pane.cells[at];
  const rows = write.top?.length ? write.top : [write];
  const list = element("ol", { className: "top" });
  for (const one of rows) {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${100 * (probability(one) || 0)}%`;
    const mine = one.token === write.token ? "mine" : "";
    const said = [element("code", {}, shown(one.text)), ` ${percent(probability(one))}`];
    list.append(element("li", { className: mine }, bar, ...said));
  }
  const when = pane.run.history(at, pane.count).map((line) => element("p", {}, line));
  const sure = `: ${percent(probability(write))} sure`;
  tip.replaceChildren(
    element("p", { className: "said" }, element("code", {}, shown(write.text)), sure),
    ...when,
    element("p", { className: "unseen" }, "Likeliest there:"),
    list,
  );
  tip.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  const box = span.getClientRects()[0];
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = Math.max(8, Math.min(box.left + scrollX, scrollX + document.documentElement.clientWidth - width - 8));
  const above = box.top - height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${scrollY + (above > 0 && box.bottom + height + 8 > innerHeight ? above : box.bottom + 6)}px`;
}

function hush() {
  pinned?.removeAttribute("aria-describedby");
  pinned = null;
  tip.hidden = true;
}

function later() {
  clearTimeout(leaving);
  leaving = setTimeout(hush, 200); // time to move onto the tooltip itself
}

tip.addEventListener("pointerenter", () => clearTimeout(leaving));
tip.addEventListener("pointerleave", later);
addEventListener("keydown", (event) => event.key === "Escape" && hush());

class Pane {
  constructor(run, say, notice) {
    Object.assign(this, { run, say, notice });
    this.root = copy("pane").firstElementChild;
    this.canvas = this.root.querySelector(".canvas");
    this.spans = [];
    this.seen = []; // what each span shows, to touch only those that change
    this.count = -1;
    this.find("h2").textContent = run.label;
    this.canvas.setAttribute("aria-label", `Text by ${run.label}; the arrow keys move between written tokens`);
    for (const kind of ["copy", "trace", "picture"]) {
      this.find(`.${kind}`).addEventListener("click", () => this.save(kind));
    }
    const token = (event) => event.target.closest?.("[data-at]");
    this.canvas.addEventListener("pointerover", (event) => token(event) && tell(this, token(event)));
    this.canvas.addEventListener("pointerout", (event) => document.activeElement !== token(event) && later());
    this.canvas.addEventListener("focusin", (event) => token(event) && tell(this, token(event)));
    this.canvas.addEventListener("focusout", hush);
    this.canvas.addEventListener("click", (event) => token(event)?.focus());
    this.canvas.addEventListener("keydown", (event) => this.walk(event));
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async save(kind) {
    const { run } = this;
    const name = `unveil-${run.label.replace(/[^\w.=-]+/g, "-").replace(/-$/, "")}`;
    const trace = kind === "trace" && run.trace();
    const copied = kind === "copy" && (await clip(run.text(run.steps.length)));
    if (kind === "copy") this.say(copied ? "Text copied." : "This browser gives no clipboard here.");
    else if (kind === "picture") file(`${name}.svg`, animation(run, colour), "image/svg+xml");
    else if (trace) file(`${name}.jsonl`, trace, "application/jsonl");
    else this.notice("This server does not tell the tokens of the text, so there is no trace to save.");
  }

  walk(event) {
    const written = [...this.canvas.querySelectorAll("[data-at]")];
    const now = written.indexOf(event.target);
    if (["Enter", " "].includes(event.key) && now >= 0) tell(this, event.target); // again after Escape
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: written.length - 1 }[event.key];
    if (next === undefined || !written[next]) return;
    event.preventDefault();
    this.rove(written[next]);
    written[next].focus();
  }

  // One token of a text is in the tab order; the arrow keys reach the others.
  rove(span) {
    for (const other of this.canvas.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    if (span) span.tabIndex = 0;
  }

  show(count) {
    const { run } = this;
    if (this.spans.length !== run.tokens.length) {
      this.spans = run.tokens.map(() => document.createElement("span"));
      this.seen = [];
      this.canvas.replaceChildren(...this.spans);
    }
    if (count !== this.count && pinned && this.canvas.contains(pinned)) hush();
    this.count = count;
    this.cells = run.cells(count);
    this.cells.forEach((cell, at) => {
      const key = `${cell.kind} ${cell.number} ${cell.fresh} ${cell.gone} ${cell.unused}`;
      if (this.seen[at] === key) return;
      this.seen[at] = key;
      dress(this.spans[at], cell, at);
    });
    if (!this.canvas.querySelector('[tabindex="0"]')) this.rove(this.canvas.querySelector("[data-at]"));
    const { forwards, written, seconds, rate } = run.cost(count);
    this.find(".forwards").textContent = forwards;
    this.find(".rate").textContent = written ? rate.toFixed(2) : "–";
    this.find(".seconds").textContent = secs(seconds);
    Object.assign(this.find("progress"), { max: run.blanks || 1, value: written });
    this.root.classList.toggle("complete", run.over && count === run.steps.length);
    this.root.classList.toggle("ready", run.over && run.steps.length > 0);
    this.find(".words").textContent = run.over ? `The text: ${run.text(count)}` : "";
    this.find(".outcome").textContent = outcome(run, count);
  }
}

function outcome(run, count) {
  if (run.state === "stopped") return "Stopped.";
  if (run.state === "failed") return "This run failed.";
  if (run.end?.finish_reason === "stop" && count === run.steps.length) return "The model ended its text there.";
  return "";
}

function dress(span, cell, at) {
  const now = cell.kind === "written" ? `token ${level(probability(cell.write))}` : cell.gone ? "gone" : cell.kind;
  span.className = `${now}${cell.fresh ? " fresh" : ""}${cell.unused ? " unused" : ""}`;
  span.textContent = cell.gone ? cell.text.trim() || "↵" : cell.kind === "blank" ? "" : cell.text;
  for (const name of ["role", "tabindex", "data-at", "aria-label", "data-mark"]) span.removeAttribute(name);
  if (cell.kind === "written") {
    span.setAttribute("role", "button");
    span.setAttribute("tabindex", "-1");
    span.dataset.at = at;
    span.setAttribute("aria-label", `${shown(cell.text)}, ${percent(probability(cell.write))}`);
    if (!cell.text.trim()) span.dataset.mark = cell.text === "" ? "∅" : cell.text.includes("\n") ? "↵" : "";
  } else if (cell.kind === "blank") {
    span.setAttribute("role", "img");
    span.setAttribute("aria-label", "blank");
  }
}

// One tab's runs and the replay of them.
export class Stage {
  constructor(root, say, notice) {
    root.append(copy("stage"));
    Object.assign(this, { root, say, notice, panes: [], clock: "forwards", at: 0, speed: 1 });
    Object.assign(this, { playing: false, live: false });
    this.scrub = this.find(".scrub");
    this.scrub.addEventListener("input", () => {
      this.at = this.marks()[Number(this.scrub.value)];
      this.pause();
    });
    this.find(".play").addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    this.find(".speed select").addEventListener("change", (event) => (this.speed = Number(event.target.value)));
    this.find(".clock select").addEventListener("change", (event) => {
      this.clock = event.target.value;
      this.replay();
    });
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  // Show these runs, from their beginning, as they come.
  set(runs, clock) {
    this.pause();
    this.panes = runs.map((run) => new Pane(run, this.say, this.notice));
    this.find(".panes").replaceChildren(...this.panes.map((pane) => pane.root));
    this.clock = clock;
    this.at = 0;
    this.find(".clock").hidden = runs.length < 2;
    this.find(".clock select").value = clock;
    this.find(".verdict").hidden = true;
    this.root.classList.toggle("two", runs.length > 1);
    this.draw();
  }

  // Begin to watch: one run at a pace one can follow, two of them as they come until both are there to be replayed.
  begin() {
    this.live = this.panes.length > 1 || calm();
    if (this.live) this.draw();
    else this.play();
  }

  // The runs of the stage are over.
  finish() {
    const followed = this.live;
    this.live = false;
    if (this.panes.length > 1 && this.panes.every((pane) => pane.run.state === "done")) this.compare();
    if (followed && !calm()) this.replay();
    else if (followed) this.at = this.marks().at(-1);
    this.draw();
  }

  replay() {
    this.at = 0;
    if (calm()) this.draw();
    else this.play();
  }

  // Values of the clock at which anything changed, from 0.
  marks() {
    const all = this.panes.flatMap((pane) => pane.run.steps.map((step) => step[this.clock]));
    return [0, ...new Set(all.filter((value) => value > 0).sort((a, b) => a - b))];
  }

  // Units of the clock in a second: a replay of any run takes about as long as one cares to watch.
  pace() {
    if (this.clock === "seconds") {
      const whole = this.marks().at(-1);
      return this.speed * (whole / Math.min(Math.max(whole, 6), 15) || 1);
    }
    const most = Math.max(...this.panes.map((pane) => pane.run.blanks));
    return this.speed * Math.min(Math.max(most / 7, 2.5), 40);
  }

  play() {
    const last = this.marks().at(-1);
    const over = this.panes.every((pane) => pane.run.over);
    if (over && this.at >= last) this.at = 0;
    this.playing = true;
    this.draw();
    let then = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      const end = this.marks().at(-1);
      this.at = Math.min(this.at + (this.pace() * Math.max(now - then, 0)) / 1000, end);
      then = now;
      if (this.at >= end && this.panes.every((pane) => pane.run.over)) this.playing = false;
      this.draw();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  pause() {
    this.playing = false;
    this.draw();
  }

  // Once a picture, however much has come.
  soon() {
    this.due ??= requestAnimationFrame(() => {
      this.due = undefined;
      this.draw();
    });
  }

  draw() {
    const marks = this.marks();
    for (const pane of this.panes) {
      const { steps } = pane.run;
      const past = steps.filter((step) => step[this.clock] <= this.at + 1e-9).length;
      const count = this.live ? steps.length : past;
      if (count !== pane.count || pane.state !== pane.run.state || pane.spans.length !== pane.run.tokens.length) {
        pane.show(count);
        pane.state = pane.run.state;
      }
    }
    const place = marks.filter((mark) => mark <= this.at + 1e-9).length - 1;
    this.scrub.max = marks.length - 1;
    this.scrub.value = this.live ? marks.length - 1 : place;
    const ready = this.panes.some((pane) => pane.run.steps.length);
    this.scrub.disabled = this.find(".play").disabled = !ready || this.live;
    this.find(".play").classList.toggle("on", this.playing);
    this.find(".play").setAttribute("aria-label", this.playing ? "Pause" : "Play");
    const words = ready ? this.place(marks, place) : "";
    if (this.find(".where").textContent !== words) {
      this.find(".where").textContent = words;
      this.scrub.setAttribute("aria-valuetext", words);
    }
  }

  place(marks, place) {
    if (this.live) return "as it comes";
    if (this.panes.length > 1) {
      const [now, end] = [marks[place], marks.at(-1)];
      return this.clock === "forwards" ? `forward ${now} of ${end}` : `${secs(now)} s of ${secs(end)}`;
    }
    const [pane] = this.panes;
    const step = pane.run.steps[pane.count - 1];
    const all = pane.run.over ? ` of ${pane.run.steps.length}` : "";
    return step ? `step ${pane.count}${all}, block ${step.block}` : "before the first step";
  }

  // What two runs cost, in bars of one scale.
  compare() {
    const two = this.panes.map(({ run }) => {
      const { forwards, written, seconds, rate } = run.cost(run.steps.length);
      const told = run.cells(run.steps.length).filter((cell) => cell.kind === "written");
      const letters = told.reduce((sum, cell) => sum + cell.text.length, 0);
      return { name: run.label, forwards, seconds, "tokens per forward": rate,
        "tokens typed a second": written / seconds, "characters typed a second": letters / seconds };
    });
    const digits = { forwards: 0, seconds: 2, "tokens per forward": 2 };
    const lines = Object.keys(two[0]).slice(1).map((kind) => {
      const most = Math.max(...two.map((one) => one[kind])) || 1;
      const cells = two.map((one) => {
        const bar = element("span", { className: "bar" });
        bar.style.width = `${Math.max(1, (100 * one[kind]) / most)}%`;
        return element("td", {}, element("span", { className: "value" }, one[kind].toFixed(digits[kind] ?? 0)), bar);
      });
      return element("tr", {}, element("th", { scope: "row" }, kind), ...cells);
    });
    const head = element("tr", {}, element("td"), ...two.map(({ name }) => element("th", { scope: "col" }, name)));
    const table = element("table", {}, head, ...lines);
    this.find(".verdict").replaceChildren(element("p", { className: "sum" }, sentence(...two)), table);
    this.find(".verdict").hidden = false;
  }
}

const lower = (name) => name[0].toLowerCase() + name.slice(1);

function sentence(a, b) {
  const compared = (x, y, same, few, many, what) => {
    const times = Math.max(x, y) / Math.min(x, y);
    return times < 1.05 ? `about as ${same} ${what}` : `${times.toFixed(1)} times ${x < y ? few : many} ${what}`;
  };
  const forwards = compared(a.forwards, b.forwards, "many", "fewer", "more", "forwards");
  const time = compared(a.seconds, b.seconds, "much", "less", "more", "time");
  return `${a.name} took ${forwards} and ${time}, compared with ${lower(b.name)}.`;
}
