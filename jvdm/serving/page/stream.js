// The page that streams: asks for a stream, plays its film while it grows, shows how it is made.

import { about, at, bytes, get, linked, send, wait } from "./common.js";
import { drawDensity, drawMatrix } from "./drawing.js";

const POLL = 250; // milliseconds
const ENDED = ["done", "failed", "cancelled"];

let current = null; // id of the stream that is shown
let picture = null; // first frame, as base64
let fastest = false; // whether the stream that is shown has the settings of `about.fast`

class Player {
  // Plays fragments of an MP4 through a MediaSource. Its codec stands in the first of them.
  constructor(video) {
    this.video = video;
    this.received = 0; // bytes
    this.buffer = null;
    this.waiting = new Uint8Array(); // until the codec is known
    this.source = new (self.ManagedMediaSource ?? self.MediaSource)();
    this.opened = new Promise((done) => this.source.addEventListener("sourceopen", done));
    video.disableRemotePlayback = true; // a ManagedMediaSource plays only so
    video.src = URL.createObjectURL(this.source);
  }

  async append(part) {
    await this.opened;
    this.received += part.length;
    if (this.buffer === null) {
      part = this.waiting = joined(this.waiting, part);
      const name = codec(part);
      if (name === null) return;
      this.buffer = this.source.addSourceBuffer(`video/mp4; codecs="${name}"`);
      this.video.play().catch(() => {}); // a browser may forbid it
    }
    const done = new Promise((end, fail) => {
      this.buffer.addEventListener("updateend", end, { once: true });
      this.buffer.addEventListener("error", fail, { once: true });
    });
    this.buffer.appendBuffer(part);
    await done;
  }

  end() {
    if (this.source.readyState === "open" && this.buffer) this.source.endOfStream();
  }
}

// The codec that the head of a film names; null while it is not there.
function codec(head) {
  const found = new TextDecoder("latin1").decode(head).indexOf("avcC");
  if (found < 0 || head.length < found + 8) return null;
  const numbers = [...head.slice(found + 5, found + 8)];
  return "avc1." + numbers.map((value) => value.toString(16).padStart(2, "0")).join("");
}

function joined(first, second) {
  const whole = new Uint8Array(first.length + second.length);
  whole.set(first);
  whole.set(second, first.length);
  return whole;
}

// Begins a stream, as the controls say; what is left empty there is null, and left out.
async function begin(prompt, seconds, seed, steps, guidance, system, attention, density) {
  await end();
  current = null; // whatever is said of the last one is not shown any more
  buttons(false);
  slower(false);
  at("state").textContent = at("error").textContent = "";
  list("told", []);
  list("notes", []);
  at("save").hidden = true;
  const asked = {
    prompt,
    duration: seconds,
    seed,
    system,
    attention: attention || null,
    density,
    num_inference_steps: steps,
    guidance_scale: guidance,
    image: picture,
  };
  const within = (value, most) => most === null || (value !== null && value <= most);
  fastest = within(steps, about.fast.steps) && within(guidance, about.fast.guidance);
  const stream = await send("POST", "api/streams", asked);
  current = stream.id;
  buttons(true);
  watch(stream.id).catch((error) => failed(error, stream.id));
}

async function watch(id) {
  const player = new Player(at("video"));
  for (let stream; current === id; await wait(POLL)) {
    stream = await get(`api/streams/${id}?played=${player.video.currentTime}`);
    if (current !== id) return;
    show(stream);
    while (stream.bytes > player.received) {
      const part = await bytes(`api/streams/${id}/film?start=${player.received}`);
      if (part.length === 0) break;
      await player.append(part);
    }
    if (ENDED.includes(stream.state) && player.received >= stream.bytes) {
      player.end();
      current = null;
      buttons(false);
      if (stream.bytes) {
        at("film").href = await linked(`api/streams/${id}/film`);
        at("save").hidden = false;
      }
    }
  }
}

function show(stream) {
  at("state").textContent = said(stream);
  slower(!fastest && slow(stream));
  at("error").textContent = stream.error
    ? [stream.error.what, stream.error.why, stream.error.fix].filter(Boolean).join("\n")
    : "";
  const time = (frame) => `${(frame / stream.fps).toFixed(1)} s`;
  list("told", stream.told.map((it) => `from frame ${it.frame} (${time(it.frame)}): ${it.prompt}`));
  list("notes", [`the seed is ${stream.seed}`, ...stream.warnings]);
  drawMatrix(at("matrix"), stream.rows);
  const last = stream.rows.at(-1);
  at("levels").textContent = last
    ? `Row ${last.row}: ${last.levels.map((t, i) => `${last.frame + i}: ${t.toFixed(2)}`).join(", ")}`
    : "";
  drawDensity(at("attended"), stream.density);
  const now = stream.density.at(-1);
  at("density-now").textContent = now ? `Now ${(100 * now.density).toFixed(1)} %.` : "";
}

function list(id, texts) {
  const lines = texts.map((textContent) =>
    Object.assign(document.createElement("li"), { textContent }),
  );
  at(id).replaceChildren(...lines);
}

const slow = ({ state, frames, speed, fps }) =>
  state === "running" && frames > 0 && speed !== null && speed < fps;

function said(stream) {
  if (stream.state === "queued") return `Waiting; ${stream.ahead} came before.`;
  const made = `${stream.frames} frames, ${(stream.frames / stream.fps).toFixed(1)} s`;
  if (stream.state !== "running") return `${stream.state}: ${made}`;
  if (stream.frames === 0 && stream.row === 0) return "Reading the prompt, and compiling.";
  if (stream.frames === 0) return `The first clip: row ${stream.row} of ${stream.of}.`;
  const pauses = `${stream.speed} frames a second are made and ${stream.fps} are played, so it pauses`;
  return `Playing: ${made} are made${slow(stream) ? `; ${pauses}` : ""}.`;
}

async function tell(prompt) {
  if (current) await send("POST", `api/streams/${current}/prompt`, { prompt });
}

async function end() {
  if (current) await send("DELETE", `api/streams/${current}`);
}

function failed(error, id) {
  at("error").textContent = error.message;
  if (id === undefined || id !== current) return;
  current = null;
  buttons(false);
}

function buttons(running) {
  at("change").disabled = at("cancel").disabled = !running;
}

const slower = (shown) => at("faster").classList.toggle("closed", !shown);

// Events of the controls.
export const start = (...asked) => void begin(...asked).catch(failed);
export const change = (prompt) => void tell(prompt).catch(failed);
export const cancel = () => void end().catch(failed);

// Begins again with fewer steps and no guidance, for a device that is slower than the film plays.
export function faster(prompt, seconds, seed, steps, guidance, ...more) {
  const { fast } = about;
  start(prompt, seconds, seed, fast.steps ?? steps, fast.guidance ?? guidance, ...more);
  return [fast.steps ?? steps, fast.guidance ?? guidance];
}

async function take(file) {
  picture = null;
  at("shown").hidden = true;
  if (!file) return;
  if (file.size > about.limits.picture) {
    const most = about.limits.picture / 1e6;
    throw new Error(`the picture has ${file.size} bytes\nat most ${most} MB are taken`);
  }
  const reader = new FileReader();
  const read = new Promise((done, fail) => {
    reader.onload = done;
    reader.onerror = () => fail(reader.error);
  });
  reader.readAsDataURL(file);
  await read;
  picture = reader.result.slice(reader.result.indexOf(",") + 1);
  at("shown").src = reader.result;
  at("shown").hidden = false;
}

export function watchPicture() {
  const drop = at("drop");
  const on = (event, act) =>
    drop.addEventListener(event, (happened) => {
      happened.preventDefault();
      act(happened);
    });
  on("dragover", () => drop.classList.add("over"));
  on("dragleave", () => drop.classList.remove("over"));
  on("drop", (event) => {
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]).catch(failed);
  });
  at("image").addEventListener("change", () => take(at("image").files[0]).catch(failed));
  addEventListener("pagehide", cancel);
}
