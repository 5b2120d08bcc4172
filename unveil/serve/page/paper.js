// The text and its blanks: where they are, how long each is to be, and how a selection becomes one.

import { BLANK } from "./run.js";
import { element } from "./stage.js";

const NEW = 8; // tokens of a blank that replaces nothing
const $ = (id) => document.getElementById(id);

export const blanks = (text) => [...text.matchAll(BLANK)].map(({ 0: whole, 1: low, 2: high, index }) => (
  { start: index, end: index + whole.length, low, high, whole }));

export class Paper {
  // `length()`: tokens of [[]]; `changed()` is called when the text has changed; `say` tells a screen reader.
  constructor({ length, changed, say }) {
    Object.assign(this, { length, changed, say, area: $("text") });
    this.letters = 3; // of a token, until a run has shown how many it is with this model
    this.area.addEventListener("input", () => this.draw());
    this.area.addEventListener("scroll", () => ($("mirror").scrollTop = this.area.scrollTop));
    this.area.addEventListener("pointerup", (event) => setTimeout(() => this.offer(event))); // a click has cleared it
    this.area.addEventListener("blur", (event) => event.relatedTarget !== $("here") && ($("here").hidden = true));
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "Shift") $("here").hidden = true;
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "b" || $("blank").disabled) return;
      event.preventDefault();
      this.make();
    });
    for (const name of ["blank", "here"]) $(name).addEventListener("click", () => this.make());
  }

  get text() {
    return this.area.value;
  }

  set text(value) {
    this.area.value = value;
    this.draw();
  }

  // Chips behind the text, numbers below it.
  draw() {
    const found = blanks(this.text);
    const parts = [];
    let end = 0;
    for (const blank of found) {
      parts.push(this.text.slice(end, blank.start), element("mark", {}, blank.whole));
      end = blank.end;
    }
    $("mirror").replaceChildren(...parts, `${this.text.slice(end)}\n`); // the last line keeps its height when empty
    this.list(found);
    this.changed();
  }

  // One number a blank; those that are there stay, so that the one in use keeps the focus.
  list(found) {
    const items = $("blanks").children;
    while (items.length > found.length) items[items.length - 1].remove();
    while (items.length < found.length) $("blanks").append(this.item(items.length));
    found.forEach(({ low, high }, index) => {
      const size = items[index].querySelector("input");
      if (document.activeElement !== size) size.value = high ? "" : low || this.length();
      size.placeholder = high ? `${low}-${high}` : "";
    });
  }

  item(index) {
    const size = element("input", { type: "number", min: 1, max: 999, inputMode: "numeric" });
    size.setAttribute("aria-label", `Tokens in blank ${index + 1}`);
    size.addEventListener("input", () => size.value && this.replace(index, `[[${Number(size.value)}]]`));
    const gone = element("button", { type: "button", className: "small", textContent: "×" });
    gone.setAttribute("aria-label", `Remove blank ${index + 1}`);
    gone.addEventListener("click", () => {
      this.replace(index, "");
      this.area.focus();
    });
    return element("li", {}, `Blank ${index + 1}`, size, "tokens", gone);
  }

  replace(index, whole) {
    const { start, end } = blanks(this.text)[index];
    this.area.setRangeText(whole, start, end, "end");
    this.draw();
  }

  // A button where the mouse has selected something.
  offer({ clientX, clientY }) {
    const box = this.area.getBoundingClientRect();
    $("here").hidden = this.area.selectionStart === this.area.selectionEnd || $("blank").disabled;
    $("here").style.left = `${Math.min(Math.max(clientX - box.left - 40, 4), box.width - 110)}px`;
    $("here").style.top = `${clientY - box.top + 14}px`;
  }

  // What is selected becomes a blank of about as many tokens; without a selection a new one stands at the cursor.
  make() {
    const { area, text } = this;
    let { selectionStart: start, selectionEnd: end } = area;
    const touched = blanks(text).filter((blank) => blank.start < end && blank.end > start);
    for (const blank of touched) [start, end] = [Math.min(start, blank.start), Math.max(end, blank.end)];
    let size = NEW;
    if (start < end) {
      end = start + (text.slice(start, end).trimEnd().length || end - start);
      start = text.slice(0, start).trimEnd().length; // most tokens begin with their space
      const inside = text.slice(start, end).replace(BLANK, "").replace(/\s+/g, " ");
      const kept = touched.reduce((sum, { low, high }) => sum + Number(high || low || this.length()), 0);
      size = Math.max(1, kept + Math.round(inside.length / this.letters));
    }
    const whole = `[[${size}]]`;
    area.focus();
    area.setSelectionRange(start, end);
    // The old command, since it alone leaves the text area's undo as it was.
    if (!document.execCommand("insertText", false, whole)) area.setRangeText(whole, start, end);
    area.setSelectionRange(start + 2, start + whole.length - 2); // typing changes the number at once
    $("here").hidden = true;
    this.draw();
    this.say(`Made a blank of ${size} tokens; type to change the number.`);
  }

  // How long this model's tokens are.
  learn(tokens) {
    const given = tokens.filter((token) => !token.blank && token.text).map((token) => token.text);
    if (given.length > 8) this.letters = given.join("").replace(/\s+/g, " ").length / given.length;
  }
}
