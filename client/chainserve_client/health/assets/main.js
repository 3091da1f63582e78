// The page: holds what was heard last, and shows it.

import { startChat } from "./chat.js";
import { showChains } from "./chains.js";
import { byId, h, show } from "./dom.js";
import { showEvents } from "./events.js";
import { addSample, showHistory } from "./history.js";
import { showJoin } from "./join.js";
import { showLinks } from "./links.js";
import { showMap } from "./map.js";
import { showServers } from "./servers.js";
import { key, listen } from "./stream.js";
import { showVerdict } from "./verdict.js";
import { time } from "./words.js";

const heard = { state: null, events: [], samples: [], ahead: 0, at: null, line: "connecting", digest: null };
const now = () => Date.now() / 1000 + heard.ahead;

const chat = startChat(() => heard.model);

function choose(state) {
  const models = state.models;
  heard.model = models.find((model) => model.digest === heard.digest) ?? models[0] ?? null;
  byId("model-choice").hidden = models.length < 2;
  show(byId("model"), models.map((model) => h("option", { value: model.digest }, model.name)));
  if (heard.model) byId("model").value = heard.model.digest;
}

function render() {
  const { state } = heard;
  document.body.dataset.line = heard.line;
  showLine();
  if (!state) return;
  choose(state);
  byId("swarm").textContent = state.swarm;
  byId("version").textContent = `chainserve ${state.version}`;
  showVerdict(heard.model, { state, isLive: heard.line === "live" });
  byId("main").classList.toggle("is-empty", !heard.model);
  if (!heard.model) return;
  showMap(heard.model);
  showServers(heard.model, { canPlan: state.can_plan, now: now(), refused: state.refused });
  showChains(heard.model, { canPlan: state.can_plan });
  showLinks(heard.model);
  showJoin(heard.model);
  showEvents(heard.events, { now: now(), models: state.models });
  chat.update(heard.line === "live");
}

const LINES = { connecting: "Connecting", live: "Live", lost: "Not connected", locked: "Locked" };

function showLine() {
  byId("line").dataset.line = heard.line;
  if (byId("line-text").textContent !== LINES[heard.line]) byId("line-text").textContent = LINES[heard.line];
  byId("key-form").hidden = heard.line !== "locked";
  const isLost = heard.line === "lost";
  const since = heard.at ? `What you see is from ${time(heard.at)}.` : "";
  const words = isLost ? `The gateway does not answer. ${since} Trying again.` : "";
  if (byId("lost").textContent !== words) byId("lost").textContent = words;
  byId("lost").hidden = !isLost;
}

function onEvent(kind, data) {
  heard.at = Date.now() / 1000;
  if (kind === "clock") heard.ahead = data.now - Date.now() / 1000;
  if (kind === "state") heard.state = data;
  if (kind === "events") heard.events = data;
  if (kind === "history") heard.samples = data;
  if (kind === "sample") heard.samples = addSample(heard.samples, data);
  if (kind === "history" || kind === "sample") showHistory(heard.samples);
  render();
}

function untilKey() {
  const form = byId("key-form");
  if (key.get()) byId("key-hint").textContent = "This gateway does not know that key.";
  byId("key").focus();
  return new Promise((resolve) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      key.set(byId("key").value.trim());
      byId("key").value = "";
      resolve();
    }, { once: true });
  });
}

byId("model").addEventListener("change", (event) => {
  heard.digest = event.target.value;
  render();
});
setInterval(render, 5000); // ages go on
listen("/api/v1/stream", {
  onEvent,
  onLine: (line) => {
    heard.line = line;
    render();
  },
  untilKey,
});
