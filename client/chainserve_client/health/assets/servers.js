// The servers: what each says of itself, and what would be missing without it.

import { byId, h, show } from "./dom.js";
import { age, blocks, bytes, count, figure, NONE, percent, plural, seconds, short, span } from "./words.js";

const HEADS = ["Server", "State", "Blocks", "Up", "Memory", "Sessions", "Tokens/s", "Link", "If it leaves"];

export function showServers(model, { canPlan, now, refused }) {
  const pinned = model.servers.filter((server) => server.is_pinned).length;
  byId("servers-aside").textContent = plural(model.servers.length, "server") + (pinned ? `, ${count(pinned)} with blocks of the owner's choice` : "");
  const isOld = new Set(model.servers.map((server) => server.version)).size > 1;
  show(
    byId("servers"),
    h("table", { class: "rows", role: "table" },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, HEADS.map((head) => h("th", { role: "columnheader", scope: "col" }, head)))),
      h("tbody", { role: "rowgroup" }, model.servers.map((server) => row(server, { canPlan, now, model })))),
    isOld && h("p", { class: "hint" }, "Servers run different versions."),
    Object.entries(refused).map(([peer, reason]) => h("p", { class: "hint hint-bad" }, `Not believed: ${short(peer)} (${reason})`)),
  );
}

function row(server, { canPlan, now, model }) {
  const cell = (head, ...children) => h("td", { role: "cell", "data-head": head, class: server.state === "unreachable" ? "was" : null }, ...children);
  return h("tr", { role: "row" },
    h("th", { role: "rowheader", scope: "row" },
      h("bdi", { class: "name" }, server.name ?? short(server.peer)),
      h("span", { class: "under" }, server.name ? h("span", { title: server.peer }, `${short(server.peer)} · `) : null, h("bdi", {}, server.device ?? "device not told"))),
    h("td", { role: "cell", "data-head": "State" }, state(server)),
    cell("Blocks", span(server.blocks), h("span", { class: "under" }, precision(server) + (server.is_pinned ? ", pinned" : ""))),
    cell("Up", age(now - server.started_at), h("span", { class: "under" }, server.version)),
    cell("Memory", memory(server)),
    cell("Sessions", count(server.num_sessions), server.num_waiting ? h("span", { class: "under" }, `${count(server.num_waiting)} waiting`) : null),
    cell("Tokens/s", figure(server.tokens_per_s), step(server)),
    h("td", { role: "cell", "data-head": "Link" }, server.link ? seconds(server.link.round_trip_s) : NONE, h("span", { class: "under" }, server.link?.kind ?? "no link from here")),
    h("td", { role: "cell", "data-head": "If it leaves" }, leaving(server, { canPlan, model })));
}

function state(server) {
  const share = server.state === "loading" ? server.loaded_share : null;
  return [
    h("span", { class: "state", "data-state": server.state }, h("span", { class: "swatch", "data-state": server.state, "aria-hidden": "true" }), ` ${server.state}`),
    share !== null && h("span", { class: "under" }, h("progress", { max: 1, value: share, "aria-label": "loaded" }), ` ${percent(share)}`),
    server.state === "unreachable" && h("span", { class: "under" }, `says ${server.announced_state}`),
  ];
}

const precision = (server) => (server.quant ? `${server.quant} in ${server.dtype}` : server.dtype);

function memory(server) {
  const { memory: given } = server;
  if (!given) return [NONE, h("span", { class: "under" }, "takes no part in plans")];
  const share = (part) => ({ width: `${(100 * part) / given.given}%` });
  return [
    h("span", { class: "bar", "aria-hidden": "true" },
      h("span", { class: "bar-weights", style: share(given.weights) }),
      h("span", { class: "bar-used", style: share(given.cache_used) }),
      h("span", { class: "bar-free", style: share(given.cache_free) })),
    h("span", { class: "under" }, `weights ${bytes(given.weights)} · cache ${bytes(given.cache_used)} of ${bytes(given.cache_used + given.cache_free)} · given ${bytes(given.given)}`),
  ];
}

function step(server) {
  if (!server.decode_step) return null;
  return h("span", { class: "under" }, [`step ${seconds(server.decode_step.observed_s)},`, h("br"), `predicted ${seconds(server.decode_step.predicted_s)}`]);
}

function leaving(server, { canPlan, model }) {
  const { missing_blocks: missing, after_planning: after } = server.if_it_leaves;
  const now = missing.length ? `${blocks(missing)} missing` : server.state === "online" ? "nothing missing" : "no change now";
  let later = "";
  if (after) later = afterwards(after, model.num_blocks);
  else if (!canPlan) later = "planning is not installed here";
  return [now, later && h("span", { class: "under" }, later)];
}

function afterwards(after, numBlocks) {
  const lacking = after.missing_blocks.length;
  if (lacking) return `then no room for ${lacking} of ${numBlocks} blocks`;
  if (after.slowdown === null) return "then the load is too high";
  if (after.is_spare) return "then as quick as now: a spare";
  return `then requests take ${after.slowdown > 0 ? "+" : ""}${figure(100 * after.slowdown)} % time`;
}
