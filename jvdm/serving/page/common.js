// What the scripts use: calls to the server, and its errors.

const key = new URLSearchParams(location.search).get("key") ?? "";
const headers = { "X-Visitor": visitor(), ...(key ? { Authorization: `Bearer ${key}` } : {}) };

// A name of this browser, by which people behind one address take turns.
function visitor() {
  const made = Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
  try {
    return (localStorage.visitor ??= made);
  } catch {
    return made; // a browser may forbid it
  }
}

export class Refused extends Error {
  constructor({ what, why, fix }) {
    super([what, why, fix].filter(Boolean).join("\n"));
  }
}

async function answered(path, options) {
  const answer = await fetch(path, { headers, ...options });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(body.error ?? { what: `the server answered ${answer.status}` });
}

export const get = async (path) => (await answered(path)).json();

export const bytes = async (path) => new Uint8Array(await (await answered(path)).arrayBuffer());

export async function send(method, path, body) {
  const type = { "Content-Type": "application/json" };
  const options = { method, headers: { ...headers, ...type }, keepalive: method === "DELETE" };
  if (body) options.body = JSON.stringify(body);
  return (await answered(path, options)).json();
}

// A file of the server as a URL for <video> and <img>, which send no headers.
export const linked = async (path) => URL.createObjectURL(new Blob([await bytes(path)]));

export const at = (id) => document.getElementById(id);

export const wait = (ms) => new Promise((done) => setTimeout(done, ms));

export const about = await get("api/about").catch((error) => {
  at("refused").textContent = error.message;
  throw error;
});
