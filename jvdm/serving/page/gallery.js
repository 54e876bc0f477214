// The gallery: several systems on one prompt and seed, side by side.

import { about, at, get, linked, send, wait } from "./common.js";

const POLL = 400; // milliseconds
const titles = new Map(about.systems.map(({ name, title }) => [name, title]));
let current = null; // id of the gallery that is being made

async function begin(prompt, seed, systems) {
  if (current) await end();
  at("gallery-error").textContent = "";
  const asked = { prompt, seed, systems };
  const gallery = await send("POST", "api/galleries", asked);
  current = gallery.id;
  at("stop").disabled = false;
  at("cards").replaceChildren();
  const cards = new Map();
  for (let now = gallery; current === gallery.id; await wait(POLL)) {
    now = await get(`api/galleries/${gallery.id}`);
    for (const piece of now.pieces) await show(piece, cards);
    if (now.pieces.every(({ state }) => !["queued", "running"].includes(state))) current = null;
  }
  at("stop").disabled = current === null;
}

async function show(piece, cards) {
  if (!cards.has(piece.system)) {
    const card = document.createElement("div");
    card.className = "card";
    card.dataset.system = piece.system;
    at("cards").append(card);
    cards.set(piece.system, { card, state: "" });
  }
  const shown = cards.get(piece.system);
  const title = element("h2", { textContent: piece.system });
  const idea = element("p", { textContent: titles.get(piece.system) ?? "" });
  const parts = [title, idea, element("p", { textContent: said(piece) })];
  if (piece.state === "done" && shown.state !== "done") {
    const video = element("video", { muted: true, loop: true, controls: true, autoplay: true });
    video.playsInline = true;
    video.src = await linked(`${piece.files}/video.mp4`);
    const strip = element("img", { className: "strip", alt: "its frames" });
    strip.src = await linked(`${piece.files}/frames.png`);
    const matrix = element("img", { className: "matrix", alt: "its timestep matrix" });
    matrix.src = await linked(`${piece.files}/matrix.png`);
    shown.made = [video, strip, matrix];
  }
  if (shown.state !== "done") shown.card.replaceChildren(...parts, ...(shown.made ?? []));
  shown.state = piece.state;
}

function said(piece) {
  if (piece.error) return [piece.error.what, piece.error.why, piece.error.fix].join("; ");
  if (piece.state === "queued") return "waiting";
  if (piece.state === "running") return `row ${piece.row} of ${piece.of}${density(piece)}`;
  if (piece.state !== "done") return piece.state;
  const times = Object.entries(piece.seconds).map(([name, s]) => `${name} ${s.toFixed(2)} s`);
  return `${times.join(", ")}${density(piece)}`;
}

const density = ({ density }) =>
  density === null ? "" : `; ${(100 * density).toFixed(1)} % of the attention`;

const element = (kind, fields) => Object.assign(document.createElement(kind), fields);

async function end() {
  const stopped = current;
  current = null;
  if (stopped) await send("DELETE", `api/galleries/${stopped}`);
}

const refused = (error) => (at("gallery-error").textContent = error.message);

// Events of the controls.
export const make = (...asked) => void begin(...asked).catch(refused);
export const stop = () => void end().catch(refused);

addEventListener("pagehide", stop);
