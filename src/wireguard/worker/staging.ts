import type { Arena } from "./arena.ts";
import { VIRTIO } from "./inner-packet.ts";
import type { Peer } from "./peers.ts";
import { Counter, PeerField, type Stats } from "./stats.ts";

/** Most that waits for one peer, in bytes of packets with their virtio headers. */
export const STAGED_PEER_MAX_BYTES = 1 << 20;
/** Most that one peer, and all together, take of the pool, in bytes; packets take whole blocks. */
export const STAGED_PEER_MAX_POOL_BYTES = 4 << 20;
export const STAGED_DEVICE_MAX_BYTES = 32 << 20;

const BLOCK_BYTES = 2048;
const BLOCKS_PER_CHUNK = 512;
const MAX_BLOCKS = STAGED_DEVICE_MAX_BYTES / BLOCK_BYTES;
const PEER_MAX_BLOCKS = STAGED_PEER_MAX_POOL_BYTES / BLOCK_BYTES;

/**
 * Packets that wait for a session, as they came from the TUN: a packet larger than the MTU stays whole, with its virtio
 * header. Each packet is a chain of 2 KiB blocks, each peer a chain of packets; the pool grows by 1 MiB and is given back
 * when nothing waits any more.
 *
 *   first block of a packet   #length: its bytes (virtio header included); #nextPacket: first block of the next packet
 *   each block                #next: next block of the packet, -1 at its end; in the free list: next free block
 */
export class Staging {
  readonly #arena: Arena;
  readonly #stats: Stats;
  #chunks: Uint8Array[] = [];
  readonly #next = new Int32Array(MAX_BLOCKS);
  readonly #nextPacket = new Int32Array(MAX_BLOCKS);
  readonly #length = new Int32Array(MAX_BLOCKS);
  #free = -1;
  #usedBlocks = 0;

  constructor(arena: Arena, stats: Stats) {
    this.#arena = arena;
    this.#stats = stats;
  }

  /**
   * Copies the packet of `length` bytes at arena offset `at` with the virtio header in front of it. The peer's oldest
   * packets make room; without any, the packet itself is dropped. Returns false then.
   */
  push(peer: Peer, at: number, length: number, now: number): boolean {
    const bytes = length + VIRTIO.bytes;
    const blocks = Math.ceil(bytes / BLOCK_BYTES);
    while (peer.stagedPackets > 0 && isFull(peer, bytes, blocks)) {
      this.#dropOldest(peer, Counter["drop-staged-peer-full"]);
    }
    while (peer.stagedPackets > 0 && this.#usedBlocks + blocks > MAX_BLOCKS) {
      this.#dropOldest(peer, Counter["drop-staged-device-full"]);
    }
    if (this.#usedBlocks + blocks > MAX_BLOCKS) {
      this.#stats.words[Counter["drop-staged-device-full"]]!++;
      return false;
    }
    const first = this.#write(at - VIRTIO.bytes, bytes);
    this.#length[first] = bytes;
    this.#nextPacket[first] = -1;
    if (peer.stagedLast >= 0) this.#nextPacket[peer.stagedLast] = first;
    else peer.stagedFirst = first;
    peer.stagedLast = first;
    peer.stagedBytes += bytes;
    peer.stagedBlocks += blocks;
    peer.stagedPackets++;
    this.#stats.words[Counter["staged-waiting"]]!++;
    peer.stagedAt = now;
    this.#publish(peer);
    return true;
  }

  /**
   * Copies the oldest packet to arena offset `at`, its virtio header in front of it, and keeps it. Returns its length, or
   * -1 when there is none.
   */
  peek(peer: Peer, at: number): number {
    const first = peer.stagedFirst;
    if (first < 0) return -1;
    const bytes = this.#length[first]!;
    let to = at - VIRTIO.bytes;
    let left = bytes;
    for (let block = first; block >= 0; block = this.#next[block]!) {
      const part = Math.min(left, BLOCK_BYTES);
      const chunk = this.#chunks[Math.floor(block / BLOCKS_PER_CHUNK)]!;
      const from = (block % BLOCKS_PER_CHUNK) * BLOCK_BYTES;
      this.#arena.bytes.set(chunk.subarray(from, from + part), to);
      to += part;
      left -= part;
    }
    return bytes - VIRTIO.bytes;
  }

  /** As `peek`, and takes the packet out. */
  shift(peer: Peer, at: number): number {
    const length = this.peek(peer, at);
    if (length >= 0) this.#removeOldest(peer);
    return length;
  }

  /** Drops everything that waits for the peer; returns the bytes of it. */
  clear(peer: Peer, counter: number): number {
    const bytes = peer.stagedBytes;
    while (peer.stagedPackets > 0) this.#dropOldest(peer, counter);
    return bytes;
  }

  #dropOldest(peer: Peer, counter: number): void {
    this.#stats.words[counter]!++;
    this.#removeOldest(peer);
  }

  #removeOldest(peer: Peer): void {
    const first = peer.stagedFirst;
    peer.stagedFirst = this.#nextPacket[first]!;
    if (peer.stagedFirst < 0) peer.stagedLast = -1;
    peer.stagedPackets--;
    this.#stats.words[Counter["staged-waiting"]]!--;
    peer.stagedBytes -= this.#length[first]!;
    for (let block = first; block >= 0; ) {
      const next = this.#next[block]!;
      this.#next[block] = this.#free;
      this.#free = block;
      this.#usedBlocks--;
      peer.stagedBlocks--;
      block = next;
    }
    if (this.#usedBlocks === 0) {
      // Nothing waits anywhere: the memory goes back and the next packet starts afresh.
      this.#chunks = [];
      this.#free = -1;
    }
    this.#publish(peer);
  }

  #write(from: number, bytes: number): number {
    let first = -1;
    let last = -1;
    for (let done = 0; done < bytes; done += BLOCK_BYTES) {
      const block = this.#takeBlock();
      const chunk = this.#chunks[Math.floor(block / BLOCKS_PER_CHUNK)]!;
      const end = Math.min(done + BLOCK_BYTES, bytes);
      chunk.set(this.#arena.bytes.subarray(from + done, from + end), (block % BLOCKS_PER_CHUNK) * BLOCK_BYTES);
      this.#next[block] = -1;
      if (last >= 0) this.#next[last] = block;
      else first = block;
      last = block;
    }
    return first;
  }

  #takeBlock(): number {
    if (this.#free < 0) {
      const start = this.#chunks.length * BLOCKS_PER_CHUNK;
      this.#chunks.push(new Uint8Array(BLOCKS_PER_CHUNK * BLOCK_BYTES));
      for (let block = start + BLOCKS_PER_CHUNK - 1; block >= start; block--) {
        this.#next[block] = this.#free;
        this.#free = block;
      }
    }
    const block = this.#free;
    this.#free = this.#next[block]!;
    this.#usedBlocks++;
    return block;
  }

  #publish(peer: Peer): void {
    const { words } = this.#stats;
    words[this.#stats.row(peer.slot) + PeerField.stagedBytes] = peer.stagedBytes;
    words[Counter["staged-bytes"]] = this.#usedBlocks * BLOCK_BYTES;
  }
}

function isFull(peer: Peer, bytes: number, blocks: number): boolean {
  return peer.stagedBytes + bytes > STAGED_PEER_MAX_BYTES || peer.stagedBlocks + blocks > PEER_MAX_BLOCKS;
}
