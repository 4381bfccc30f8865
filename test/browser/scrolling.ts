import type { Page } from "playwright-core";

/** What a page showed while its table scrolled. */
export interface ScrollResult {
  readonly frames: number;
  readonly seconds: number;
  /** Milliseconds between frames: the middle, 95 of 100, the longest. */
  readonly median: number;
  readonly p95: number;
  readonly worst: number;
  /** Most rows in the document at any frame. */
  readonly rowsMost: number;
  /** Frames in which a part of the visible table had no row. */
  readonly blank: number;
}

/**
 * Scrolls the table of peers down and up for some seconds, a bit in each frame, and looks at each frame. Runs in the page.
 * `perFrame` is in pixels.
 */
export function measureScrolling(page: Page, seconds: number, perFrame: number): Promise<ScrollResult> {
  return page.evaluate(`new Promise((resolve) => {
    const scroller = document.querySelector(".scroller");
    const times = [];
    let rowsMost = 0, blank = 0, direction = 1, began;
    const frame = (now) => {
      began ??= now;
      times.push(now);
      const rows = scroller.querySelectorAll("[role=row]");
      rowsMost = Math.max(rowsMost, rows.length);
      const { top, left, height } = scroller.getBoundingClientRect();
      for (const y of [top + 4, top + height / 2, top + height - 4])
        if (!document.elementFromPoint(left + 30, y)?.closest("[role=row]")) { blank++; break; }
      scroller.scrollTop += direction * ${perFrame};
      const atEnd = scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 1;
      if (atEnd || scroller.scrollTop <= 0) direction = atEnd ? -1 : 1;
      if (now - began < ${seconds * 1000}) return requestAnimationFrame(frame);
      const deltas = times.slice(1).map((time, index) => time - times[index]).sort((a, b) => a - b);
      const at = (share) => deltas[Math.min(deltas.length - 1, Math.floor(share * deltas.length))];
      resolve({ frames: deltas.length, seconds: (now - began) / 1000, median: at(0.5), p95: at(0.95), worst: at(1), rowsMost, blank });
    };
    requestAnimationFrame(frame);
  })`);
}
