/** Counters that may arrive late: 127 words of 64, as the Linux kernel and wireguard-go keep them. */
export const REPLAY_WINDOW = 8128;

const WORDS = 256;

/**
 * Which counters of a receiving session were seen (paper section 5.4.6; RFC 6479). Ask only after the packet
 * authenticated: anything else would let a forger move the window.
 */
export class ReplayWindow {
  /** A ring of 8192 bits: counter n is bit n mod 32 of word n/32 mod 256. */
  readonly #seen = new Uint32Array(WORDS);
  #last = 0;

  /** Takes the counter; false when it was seen or is too old. `counter` is an integer below 2^53. */
  accept(counter: number): boolean {
    const word = Math.floor(counter / 32);
    if (counter > this.#last) {
      const lastWord = Math.floor(this.#last / 32);
      const steps = Math.min(word - lastWord, WORDS);
      for (let step = 1; step <= steps; step++) this.#seen[(lastWord + step) % WORDS] = 0;
      this.#last = counter;
    } else if (this.#last - counter > REPLAY_WINDOW) {
      return false;
    }
    const slot = word % WORDS;
    const bit = 1 << (counter % 32);
    if ((this.#seen[slot]! & bit) !== 0) return false;
    this.#seen[slot]! |= bit;
    return true;
  }
}
