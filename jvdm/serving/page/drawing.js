// Pictures of how a stream is made: the rows of its timestep matrix, and its attention density.

const NOISE = [38, 28, 84]; // the colours of jvdm.samplers.plot
const CLEAN = [250, 221, 120];

export function drawMatrix(canvas, rows) {
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (rows.length === 0) return;
  const first = Math.min(...rows.map((row) => row.frame));
  const last = Math.max(...rows.map((row) => row.frame + row.levels.length));
  const width = Math.min(24, canvas.width / (last - first));
  const height = Math.min(16, canvas.height / rows.length);
  rows.forEach((row, y) => {
    row.levels.forEach((level, x) => {
      const mixed = NOISE.map((noise, i) => Math.round(level * noise + (1 - level) * CLEAN[i]));
      pen.fillStyle = `rgb(${mixed.join()})`;
      pen.fillRect((row.frame - first + x) * width, y * height, width - 1, height - 1);
    });
  });
}

export function drawDensity(canvas, chunks) {
  const pen = canvas.getContext("2d");
  const { width, height } = canvas;
  pen.clearRect(0, 0, width, height);
  if (chunks.length === 0) return;
  const half = width / 2 - 8;
  pen.fillStyle = "#4a7";
  const bar = Math.min(12, half / chunks.length);
  chunks.forEach(({ density }, i) => {
    pen.fillRect(i * bar, height * (1 - density), Math.max(1, bar - 1), height * density);
  });
  const layers = chunks.at(-1).layers;
  const step = Math.min(24, half / layers.length);
  pen.fillStyle = "#47a";
  layers.forEach((density, i) => {
    const left = width / 2 + 8 + i * step;
    pen.fillRect(left, height * (1 - density), Math.max(1, step - 1), height * density);
  });
}
