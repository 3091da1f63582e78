// Who holds which blocks: a row for each server, and by how many servers each block is served.

import { byId, h, show } from "./dom.js";
import { percent, short, span } from "./words.js";

const MAX_NUMBERED = 40;

export function showMap(model) {
  const total = model.num_blocks;
  byId("map-aside").textContent = `${model.name}, ${total} blocks`;
  show(
    byId("map"),
    h("div", { class: "map", style: { "--num-blocks": total } }, coverageRow(model), model.servers.map((server) => row(server, total)), axis(total)),
    h("p", { class: "legend" },
      ["online", "loading", "draining", "unreachable"].map((state) => h("span", {}, h("span", { class: "swatch", "data-state": state, "aria-hidden": "true" }), ` ${state}`)),
      h("span", {}, h("span", { class: "swatch swatch-plan", "aria-hidden": "true" }), " planned")),
  );
}

const position = ([start, end], total) => ({ left: `${(100 * start) / total}%`, width: `${(100 * (end - start)) / total}%` });

function row(server, total) {
  const moves = server.planned_blocks && String(server.planned_blocks) !== String(server.blocks);
  const words = server.blocks ? span(server.blocks) : "no blocks";
  const loading = server.state === "loading" && server.loaded_share !== null ? ` ${percent(server.loaded_share)}` : "";
  return h("div", { class: "map-row" },
    h("div", { class: "map-name" },
      h("span", {}, h("bdi", { title: server.peer }, server.name ?? short(server.peer)), server.name && h("span", { class: "map-words" }, ` ${short(server.peer)}`)),
      h("span", { class: "map-words" }, `${words}${server.is_pinned ? " pinned" : ""}, ${server.state}${loading}${moves ? `, to be ${span(server.planned_blocks)}` : ""}`)),
    h("div", { class: "map-lane", "aria-hidden": "true" },
      moves && h("span", { class: "map-plan", style: position(server.planned_blocks, total) }),
      server.blocks && h("span", { class: "map-bar", "data-state": server.state, style: position(server.blocks, total) },
        loading && h("span", { class: "map-loaded", style: { width: percent(server.loaded_share).replace(" ", "") } }))));
}

function coverageRow(model) {
  const counts = model.coverage;
  return h("div", { class: "map-row map-coverage" },
    h("div", { class: "map-name" }, h("strong", {}, "Servers per block"), h("span", { class: "map-words" }, summary(counts))),
    h("div", { class: "map-cells", "aria-hidden": "true", "data-numbered": String(counts.length <= MAX_NUMBERED) },
      counts.map((count) => h("span", { "data-count": Math.min(count, 3) }, counts.length <= MAX_NUMBERED ? String(count) : ""))));
}

function summary(counts) {
  const runs = [];
  counts.forEach((count, block) => {
    const last = runs.at(-1);
    if (last && last.count === count) last.end = block + 1;
    else runs.push({ start: block, end: block + 1, count });
  });
  if (runs.length > 6) return `${Math.min(...counts)} at least, ${Math.max(...counts)} at most`;
  return runs.map(({ start, end, count }) => `${start}:${end} on ${count}`).join(", ");
}

function axis(total) {
  const step = Math.max(1, Math.ceil(total / 6));
  const ticks = Array.from({ length: Math.ceil(total / step) }, (_, index) => index * step).filter((tick) => total - tick > step / 2);
  return h("div", { class: "map-row map-axis", "aria-hidden": "true" }, h("div", { class: "map-name" }),
    h("div", { class: "map-lane" }, [...ticks, total].map((tick) => h("span", { style: { left: `${(100 * tick) / total}%` } }, String(tick)))));
}
