/*
 * Names and limits of the signal service (signal-and-peer-connection.md, 1.1 to 1.3).
 */

export const SIGNAL_PATH_PREFIX = "/signalexchange.SignalExchange/";
export const SIGNAL_SEND_PATH = `${SIGNAL_PATH_PREFIX}Send`;
export const SIGNAL_STREAM_PATH = `${SIGNAL_PATH_PREFIX}ConnectStream`;

/** Request metadata of ConnectStream: the caller's public key. */
export const PEER_ID_HEADER = "x-wiretrustee-peer-id";
/** Response metadata of ConnectStream: the registration was taken. Agents check that it exists. */
export const REGISTERED_HEADER = "x-wiretrustee-peer-registered";
/** Response metadata of Send from a Perch server: `1` when the message was written to the recipient's stream, else `0`. */
export const DELIVERED_HEADER = "perch-delivered";
/**
 * Response metadata of ConnectStream from a Perch server: `1` when Sends of one HTTP/2 connection are handled in the order
 * in which their last byte arrives. Towards other servers an agent awaits one Send before the next to keep the order.
 */
export const ORDERED_HEADER = "perch-ordered";

/** A recipient that older agents address to see whether the server answers; nothing is done. */
export const DUMMY_RECIPIENT = "dummy";

/** Longest EncryptedMessage, bytes. A Rosenpass public key alone is half a megabyte. */
export const SIGNAL_MESSAGE_MAX_BYTES = 4 * 1024 * 1024;
