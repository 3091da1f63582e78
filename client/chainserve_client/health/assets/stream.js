// Server-sent events over fetch, which can carry a key, and tells why a stream was refused.

const KEY = "chainserve-key";
const PAUSES_MS = [500, 1000, 2000, 4000];
const SILENT_MS = 25000; // the gateway speaks every ten seconds

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

export const headers = (more = {}) => (key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more);

// The events of a response: {kind, data} with the data as text.
export async function* eventsOf(response, onBytes = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    onBytes();
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) {
      const lines = piece.split("\n");
      const kind = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "message";
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) yield { kind, data };
    }
  }
}

// Listen for as long as the page is open; `onLine` is told connecting, live, lost or locked.
export async function listen(path, { onEvent, onLine, untilKey }) {
  for (let failures = 0; ; ) {
    try {
      const giveUp = new AbortController();
      let timer = setTimeout(() => giveUp.abort(), SILENT_MS);
      const alive = () => {
        clearTimeout(timer);
        timer = setTimeout(() => giveUp.abort(), SILENT_MS);
      };
      const response = await fetch(path, { headers: headers(), signal: giveUp.signal, cache: "no-store" });
      if (response.status === 401) {
        clearTimeout(timer);
        onLine("locked");
        await untilKey();
        continue;
      }
      if (response.ok) {
        failures = 0;
        onLine("live");
        for await (const event of eventsOf(response, alive)) onEvent(event.kind, JSON.parse(event.data));
      }
      clearTimeout(timer);
    } catch (error) {
      if (!(error instanceof TypeError || error.name === "AbortError")) throw error;
    }
    onLine("lost");
    await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[Math.min(failures++, PAUSES_MS.length - 1)]));
  }
}
