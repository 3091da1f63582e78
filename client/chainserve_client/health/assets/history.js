// The last 24 hours in four small plots. A sample is [at, load, tokens per second, waiting, servers online].

import { byId, h, show, svg } from "./dom.js";
import { age, count, figure, percent } from "./words.js";

const DAY_S = 86400;
const LEAST_S = 600; // a plot is at least so long
const GAP_S = 900; // no line is drawn over a longer gap
const WIDTH = 300;
const HEIGHT = 56;
const PLOTS = [
  { title: "Cache in use", field: 1, words: percent, least: 0.1 },
  { title: "Tokens/s", field: 2, words: figure, least: 1 },
  { title: "Waiting", field: 3, words: figure, least: 1 },
  { title: "Servers online", field: 4, words: (value) => count(Math.round(value)), least: 1 },
];

export function addSample(samples, sample) {
  return [...samples.filter(([at]) => at > sample[0] - DAY_S && at < sample[0]), sample];
}

export function showHistory(samples) {
  if (!samples.length) return;
  const end = samples.at(-1)[0];
  const begin = Math.min(samples[0][0], end - LEAST_S);
  show(byId("history"), PLOTS.map((plot) => figureOf(plot, samples, begin, end)));
}

function figureOf({ title, field, words, least }, samples, begin, end) {
  const values = samples.map((sample) => sample[field]);
  const most = Math.max(...values);
  const top = Math.max(most, least) * 1.08;
  const x = (at) => (WIDTH * (at - begin)) / (end - begin);
  const y = (value) => HEIGHT - ((HEIGHT - 2) * value) / top;
  const now = values.at(-1);
  return h("figure", { class: "plot" },
    h("figcaption", {}, h("span", {}, title), h("strong", { class: "num" }, words(now)), h("span", { class: "aside" }, `most ${words(most)}`)),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: now ${words(now)}, at most ${words(most)}` },
      svg("line", { class: "plot-base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
      runs(samples).map((run) => {
        const line = run.map((sample, index) => `${index ? "L" : "M"}${x(sample[0]).toFixed(1)} ${y(sample[field]).toFixed(1)}`).join("");
        const close = `L${x(run.at(-1)[0]).toFixed(1)} ${HEIGHT}L${x(run[0][0]).toFixed(1)} ${HEIGHT}Z`;
        return [svg("path", { class: "plot-area", d: line + close }), svg("path", { class: "plot-line", d: line })];
      })),
    h("p", { class: "plot-axis", "aria-hidden": "true" }, h("span", {}, `${age(end - begin)} ago`), h("span", {}, "now")));
}

function runs(samples) {
  const found = [];
  samples.forEach((sample, index) => {
    if (index && sample[0] - samples[index - 1][0] < GAP_S) found.at(-1).push(sample);
    else found.push([sample]);
  });
  return found;
}
