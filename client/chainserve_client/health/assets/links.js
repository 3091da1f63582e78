// The matrix of links: from the server of a row to that of a column.

import { byId, h, show } from "./dom.js";
import { bytes, NONE, seconds, short } from "./words.js";

export function showLinks(model) {
  const { servers, links } = model;
  byId("links").closest(".pair").toggleAttribute("data-many", servers.length > 5);
  const ways = new Map(links.map((link) => [`${link.from ?? ""} ${link.to}`, link]));
  const slowest = Math.max(...links.map((link) => link.round_trip_s), 1e-3);
  const head = (server) => h("th", { scope: "col" }, h("bdi", { title: server.peer }, server.name ?? short(server.peer)), server.name && h("span", { class: "under" }, short(server.peer)));
  const rows = [null, ...servers];
  show(byId("links"), h("table", { class: "matrix" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "from \\ to"), servers.map(head))),
    h("tbody", {}, rows.map((from) => h("tr", {},
      h("th", { scope: "row" }, from ? [h("bdi", { title: from.peer }, from.name ?? short(from.peer)), from.name && h("span", { class: "under" }, short(from.peer))] : "gateway"),
      servers.map((to) => cell(from, to, ways.get(`${from?.peer ?? ""} ${to.peer}`), slowest)))))));
}

function cell(from, to, way, slowest) {
  if (from === to) return h("td", { class: "self" }, h("span", { class: "unseen" }, "itself"));
  if (!way) return h("td", { class: "none" }, NONE);
  const share = Math.sqrt(way.round_trip_s / slowest); // small ones differ, too
  return h("td", { style: { "--share": share.toFixed(2) } }, seconds(way.round_trip_s), way.bytes_per_s && h("span", { class: "under" }, `${bytes(way.bytes_per_s)}/s`));
}
