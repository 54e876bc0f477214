// Fills the controls with what the model can do, when the page opens.

import { about, at } from "./common.js";
import { watchPicture } from "./stream.js";

const update = (fields) => ({ __type__: "update", ...fields });
const empty = update({ value: null });
const choices = (names) => names.map((name) => [name, name]);

// Returns what becomes of the parts in `controls.blocks`, in their order.
export function opened() {
  const { limits, systems, fast } = about;
  at("about").textContent =
    `${about.model}, ${about.width}x${about.height}, ${about.fps} frames a second, on ${about.device}`;
  at("video").style.aspectRatio = `${about.width} / ${about.height}`;
  watchPicture();
  const faster = [fast.steps && `with ${fast.steps} steps`, fast.guidance && "without guidance"];
  const prompt = update({ max_length: limits.prompt });
  const seconds = update({ value: about.usual_seconds, maximum: limits.seconds });
  const names = systems.map(({ name }) => name);
  const system = update({ choices: choices(names) });
  const attention = update({ choices: [["usual", ""], ...choices(about.attention)] });
  const label = update({ value: `Begin again ${faster.filter(Boolean).join(", ")}: faster` });
  const compared = update({
    choices: choices(names),
    value: systems.filter(({ usual }) => usual).map(({ name }) => name),
  });
  const tabs = update({ visible: true });
  const asked = [prompt, seconds, empty, empty, empty, system, attention, empty];
  return [tabs, ...asked, label, prompt, compared];
}
