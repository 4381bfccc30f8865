import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import type { PrivateKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import {
  EmptySchema,
  type EncryptedMessage,
  LoginRequestSchema,
  LoginResponseSchema,
  ManagementService,
  SyncMetaRequestSchema,
  SyncRequestSchema,
} from "#gen/management_pb.ts";
import { EnvelopeError, openMessage, sealBytes, sealMessage, senderOf } from "../protocol/envelope.ts";
import type { ManagementServer } from "./management-server.ts";
import type { ManagementStore } from "./store.ts";

/** Largest request, in bytes: gRPC's default, which stock servers keep (protocol/management.md, section 1.1). */
export const MAX_REQUEST_BYTES = 4 * 1024 * 1024;

/** Ties the RPCs to the server: opens and seals envelopes, turns failures into status codes (sections 1.7 and 2.5). */
export function registerRoutes(
  router: ConnectRouter,
  server: ManagementServer,
  deps: { readonly log: Logger; readonly store: ManagementStore },
): void {
  const own = deps.store.serverKey;
  /** Runs a call of the peer that sealed the request. */
  const answer = async <Desc extends DescMessage, T>(
    call: string,
    schema: Desc,
    envelope: EncryptedMessage,
    run: (sender: PublicKey, request: MessageShape<Desc>) => Promise<T>,
  ): Promise<T> => {
    try {
      const { sender, request } = openRequest(schema, envelope, own);
      return await run(sender, request);
    } catch (error) {
      throw statusOf(error, call, deps.log);
    }
  };
  router.service(
    ManagementService,
    {
      getServerKey: async () => ({ key: own.publicKey }),
      isHealthy: async () => ({}),
      login: (envelope) =>
        answer("Login", LoginRequestSchema, envelope, async (sender, request) =>
          sealMessage(LoginResponseSchema, await server.login(sender, request), sender, own),
        ),
      async *sync(envelope, context) {
        const { sender, stream } = await answer("Sync", SyncRequestSchema, envelope, async (key, request) => ({
          sender: key,
          stream: await server.openStream(key, request.meta, request.perch),
        }));
        try {
          for (;;) {
            const message = await stream.next(context.signal);
            if (!message) return;
            yield sealBytes(message, sender, own);
          }
        } catch (error) {
          throw statusOf(error, "Sync", deps.log);
        } finally {
          server.closeStream(sender, stream);
        }
      },
      syncMeta: (envelope) =>
        answer("SyncMeta", SyncMetaRequestSchema, envelope, async (sender, request) => {
          await server.syncMeta(sender, request.meta);
          return {};
        }),
      logout: (envelope) =>
        answer("Logout", EmptySchema, envelope, async (sender) => {
          await server.logout(sender);
          return {};
        }),
      // NOT_FOUND says "no such login here, use a setup key"; a stock agent then does not ask again.
      getDeviceAuthorizationFlow: async () => {
        throw new ConnectError("no device login is configured", Code.NotFound);
      },
      getPKCEAuthorizationFlow: async () => {
        throw new ConnectError("no browser login is configured", Code.NotFound);
      },
      // Job, ExtendAuthSession and the expose calls are left out: the router answers UNIMPLEMENTED, which an agent takes
      // for "not here"; PERMISSION_DENIED to Job would tear its engine down.
    },
    { readMaxBytes: MAX_REQUEST_BYTES, acceptCompression: [] },
  );
}

function openRequest<Desc extends DescMessage>(
  schema: Desc,
  envelope: EncryptedMessage,
  own: PrivateKey,
): { readonly sender: PublicKey; readonly request: MessageShape<Desc> } {
  const sender = senderOf(envelope);
  return { sender, request: openMessage(schema, envelope, sender, own) };
}

/** An unexpected failure is logged here and told to nobody. */
function statusOf(error: unknown, call: string, log: Logger): ConnectError {
  if (error instanceof ConnectError) return error;
  if (error instanceof EnvelopeError) return new ConnectError(error.message, Code.InvalidArgument);
  log.error("call failed", { call, err: error });
  return new ConnectError("internal error", Code.Internal);
}
