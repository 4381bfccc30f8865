import { createRoot } from "react-dom/client";
import { App } from "./app.tsx";
import { Closed } from "./banner.tsx";
import { forgetSession, openSession } from "./session.ts";
import { Store } from "./store.ts";
import "uplot/dist/uPlot.min.css";
import "./page.css";

const root = createRoot(document.getElementById("page")!);
const session = await openSession().catch((reason: unknown) => ({ kind: "closed" as const, why: String(reason) }));
if (session.kind === "closed") {
  root.render(<Closed why={session.why} />);
} else {
  const store = new Store(session.client);
  const ended = new AbortController();
  store.subscribe(() => {
    if (store.picture().link.kind !== "over") return;
    ended.abort();
    forgetSession();
  });
  store.start(ended.signal);
  root.render(<App store={store} client={session.client} />);
}
