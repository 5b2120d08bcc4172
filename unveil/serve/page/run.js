// One run as data: the request, the stream that answers it, the text after every step, its trace, and its link.

export const BLANK = /\[\[\s*(\d*)\s*(?:-\s*(\d+)\s*)?\]\]/g; // as unveil/codecs/blanks.py reads them
const EDGES = [0.3, 0.5, 0.7, 0.9]; // between the levels of the legend
const SILENT = "The server does not answer. Is unveil serve still running on this machine?";

export class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// A response, or Trouble in a sentence that a visitor understands.
export async function call(path, { key = "", body, signal } = {}) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const method = body ? "POST" : "GET";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(SILENT);
  }
  if (response.ok) return response;
  let said;
  try {
    said = (await response.json()).error.message;
  } catch {
    said = `The server answered with status ${response.status}.`; // a proxy in between speaks no JSON
  }
  const wait = response.headers.get("Retry-After");
  throw new Trouble(response.status === 429 && wait ? `${said} Try again in ${wait} s.` : said, response.status);
}

// The JSON of every `data:` line of a stream.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let got;
    try {
      got = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The connection to the server broke off before the run was finished.");
    }
    const lines = (rest + (got.value ?? "")).split("\n");
    rest = got.done ? "" : lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
    if (got.done) throw new Trouble("The server ended the stream before the run was finished.");
  }
}

export const probability = (write) => (write.logprob === null ? NaN : Math.exp(write.logprob));

export function level(p) {
  return Number.isNaN(p) ? "unknown" : `l${EDGES.filter((edge) => p >= edge).length}`;
}

export class Run {
  // `body`: the request. `facts`: what the page knows beyond it, for the trace: model, tokenizer, cache, block.
  constructor(label, body, facts) {
    Object.assign(this, { label, body, facts });
    this.tokens = []; // {text, blank, token} of every position before the first step
    this.steps = [];
    this.end = null; // the last event
    this.state = "waiting"; // then running, and done, stopped or failed
    this.control = new AbortController();
  }

  get over() {
    return ["done", "stopped", "failed"].includes(this.state);
  }

  get blanks() {
    return this.tokens.filter((token) => token.blank).length;
  }

  // Follow the stream to its end; `changed` is called whenever something has come. Trouble when it fails.
  async follow(key, changed) {
    this.state = "running";
    try {
      const path = this.body.messages ? "/v1/chat/completions" : "/v1/completions";
      const response = await call(path, { key, body: this.body, signal: this.control.signal });
      for await (const event of events(response)) {
        if (event.error) throw new Trouble(event.error.message);
        const mine = event.choices?.find((choice) => choice.index === 0);
        if (event.object === "unveil.canvas") [this.tokens, this.mask] = [mine.tokens, mine.mask_id];
        else if (event.object === "unveil.step" && mine) this.steps.push(mine);
        else if (event.object === "unveil.done") this.end = { ...mine, usage: event.usage };
        changed();
      }
      this.state = "done";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      if (this.state === "failed") throw error;
    } finally {
      changed();
    }
  }

  stop() {
    this.control.abort(); // the server frees the slot when the connection closes
  }

  // Every position after `count` steps: how it stands, and the write that made it so.
  cells(count) {
    const cells = this.tokens.map(({ text, blank }) => ({ kind: blank ? "blank" : "given", text }));
    this.steps.slice(0, count).forEach((step, number) => {
      const fresh = number === count - 1;
      for (const at of step.taken_back) {
        const before = cells[at];
        cells[at] = { kind: "blank", text: fresh ? before.text : "", gone: fresh && before.kind === "written", number };
      }
      for (const write of step.written) cells[write.at] = { kind: "written", text: write.text, write, fresh, number };
    });
    if (this.end && count === this.steps.length && this.end.finish_reason === "stop") {
      for (const cell of cells) cell.unused = cell.kind === "blank"; // the text ended before them
    }
    return cells;
  }

  // Everything that happened to a position in the first `count` steps, in words.
  history(at, count) {
    const lines = [];
    this.steps.slice(0, count).forEach((step) => {
      const when = `block ${step.block}, step ${step.step} (forward ${step.forwards})`;
      const write = step.written.find((one) => one.at === at);
      if (step.taken_back.includes(at)) lines.push(`taken back in ${when}`);
      if (write) lines.push(`${lines.length ? `${shown(write.text)} written` : "written"} in ${when}`);
    });
    return lines;
  }

  // What the first `count` steps cost, and how many blanks are written after them.
  cost(count) {
    const last = this.steps[count - 1];
    const written = this.cells(count).filter((cell) => cell.kind === "written").length;
    const whole = this.end && count === this.steps.length;
    const forwards = (whole ? this.end.usage?.forwards : undefined) ?? last?.forwards ?? 0;
    return { forwards, written, seconds: last?.seconds ?? 0, rate: forwards ? written / forwards : 0 };
  }

  // The whole text, what was given included.
  text(count) {
    const before = this.body.blanks ? "" : this.body.prompt ?? "";
    if (this.end && count === this.steps.length) return before + this.end.text;
    return this.cells(count).map((cell) => (cell.kind === "blank" ? "░" : cell.text)).join("");
  }

  // Lines of JSON as unveil/watch/trace.py reads them, or null where the server told no token ids.
  trace() {
    if (!this.tokens.every((token) => token.blank || Number.isInteger(token.token))) return null;
    const { model, tokenizer, cache, block } = this.facts;
    const { decoder, temperature = 0, steps = null, seed } = this.body;
    const rows = [this.tokens.map((token) => (token.blank ? this.mask : token.token))];
    const head = { format: "unveil trace", version: 1, model, tokenizer, decoder: heated(decoder, temperature),
      cache, guide: null, block, steps, mask_id: this.mask, seeds: [seed], lengths: [rows[0].length], rows };
    let before = 0;
    const lines = this.steps.map(({ block, step, forwards, seconds, written, taken_back }) => {
      const took = round(seconds - before);
      before = seconds;
      const items = [...written].sort((a, b) => a.at - b.at);
      const news = items.map((one) => [one.at, one.token, one.logprob === null ? null : round(probability(one))]);
      return { block, step, forwards, seconds: took, written: [news], taken_back: [taken_back] };
    });
    const end = { end: { steps: lines.length, seconds: round(before) } };
    return [head, ...lines, end].map((line) => JSON.stringify(line) + "\n").join("");
  }
}

const round = (value) => Math.round(value * 1e6) / 1e6;

// Specs: "name(a=1, b='x')", as unveil/spec.py reads them

// [name, {option: value as it is spelled}]
export function taken(spec) {
  const [name] = spec.split("(");
  const pieces = spec.slice(name.length + 1, -1).match(/(?:[^,'"([]|'[^']*'|"[^"]*"|\([^)]*\)|\[[^\]]*\])+/g) ?? [];
  return [name, Object.fromEntries(pieces.map((piece) => piece.split(/=(.*)/s, 2).map((part) => part.trim())))];
}

export function spelled(name, options) {
  const literal = (value) => (/^(-?[\d.]|True$|False$|None$|['"([])/.test(value) ? value : `'${value}'`);
  const inside = Object.entries(options).map(([option, value]) => `${option}=${literal(value)}`).join(", ");
  return name + (inside && `(${inside})`);
}

// With the temperature that the request put into it, as the trace of a command says it.
function heated(spec, temperature) {
  const [name, options] = taken(spec);
  return temperature ? spelled(name, { ...options, temperature: String(temperature) }) : spec;
}

// A token's text so that white space can be seen.
export function shown(text) {
  const marks = { "\n": "↵", "\t": "⇥", " ": "␣" };
  return text === "" ? "nothing visible" : `“${text.replace(/[\n\t ]/g, (space) => marks[space])}”`;
}

// Link

const FIELDS = ["model", "text", "chat", "decoder", "with", "cache", "block", "steps", "temperature", "seed", "length",
  "tab"];

export function linked(fields) {
  return `#${new URLSearchParams(FIELDS.filter((name) => fields[name] !== "").map((name) => [name, fields[name]]))}`;
}

// The fields of a fragment; null where it is no link to a run.
export function opened(fragment) {
  const given = new URLSearchParams(fragment.slice(1));
  return fragment.includes("text=") ? Object.fromEntries(FIELDS.map((name) => [name, given.get(name) ?? ""])) : null;
}

