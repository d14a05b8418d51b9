// What the types are there to refuse: without an error in the line below it, each of these comments is one.

import { HeartbeatClient, Monitor, Unconfirmed, type Moment, type Options, type Timing, type Transport } from "txheartbeat";

const client = new HeartbeatClient("ws://127.0.0.1:9000/ws");

// A wrong option, or one of a wrong kind.

// @ts-expect-error  no URL
new HeartbeatClient();
// @ts-expect-error  a unit that is not in the name
new HeartbeatClient("ws://127.0.0.1:9000/ws", { interval: 6 });
// @ts-expect-error  a number as text
const texts: Options = { interval_ms: "6000" };
// @ts-expect-error  one bound of two
const bounds: Options = { timeout_ms: [3000] };
// @ts-expect-error  no delay to repeat
const delays: Options = { delays_ms: [] };
// @ts-expect-error  what the server declares
const limits: Options = { kept_limit: 1000 };
// @ts-expect-error  where a script is, and not what runs it
const worker: Options = { worker: "/heartbeat.js" };
// @ts-expect-error  somebody else
const beats: Options = { beats: "nobody" };
// @ts-expect-error  a WebSocket, not its class
const made: Options = { WebSocket: new WebSocket("ws://127.0.0.1:9000/ws") };
// @ts-expect-error  a storage that forgets nothing
const store: Options = { storage: { getItem: () => null, setItem: () => {} } };
declare const Narrow: new (url: string) => Transport;
// @ts-expect-error  a class that takes no URL, which the client hands on as it got it
const narrow: Options = { WebSocket: Narrow };
// @ts-expect-error  a hook that takes something else
const hook: Options = { pongReceived: (answer: string) => answer };

// What is no message, and no way to hear of one.

// @ts-expect-error  text
client.send("hello");
// @ts-expect-error  no type
client.send({ text: "hello" });
// @ts-expect-error  a type that is no text
client.send({ type: 7 });
// @ts-expect-error  a word for it that does not exist
client.send({ type: "note" }, { unreliable: true });
// @ts-expect-error  all messages come to one hook
client.register("note", () => {});
// @ts-expect-error  a hook that wants more than it gets
client.messageReceived = (message, handling, more) => more;
// @ts-expect-error  a member of a message may be anything, so it is nothing in particular
client.messageReceived = (message) => message.text.length;
// @ts-expect-error  an answer is a message like others
client.messageReceived = (message, handling) => handling.reply({ type: "accepted" });
// @ts-expect-error  a message may have no number
client.messageReceived = (message, handling) => handling.seq + 1;

// What is told is not to be changed, and may be missing.

// @ts-expect-error  read only
client.status = client.status;
// @ts-expect-error  read only
client.status.event = "open";
// @ts-expect-error  read only
client.unconfirmed = 0;
// @ts-expect-error  there may be none
const rtt: number = client.status.rtt_ms;
// @ts-expect-error  a word that is no event
const wrong: boolean = client.status.event === "alive";
// @ts-expect-error  there is no such thing
client.stop();
// @ts-expect-error  it does not say what it was resolved with
client.send({ type: "note" }).then((answer) => answer.id);
// @ts-expect-error  read only
const sink = (error: Unconfirmed) => error.messages.push({ type: "note" });

// What each client has of its own would never be called.

class Louder extends HeartbeatClient {
    // @ts-expect-error  not to be overridden
    override close(): void {}
}

// The part that decides.

declare const timing: Timing;
declare const at: Moment;
// @ts-expect-error  no moment
new Monitor(timing, false);
// @ts-expect-error  no bound above which silence is suspect
const partial: Timing = { interval_ms: 6000, timeout_ms: [3000, 6000], probe_ms: 3000, tick_ms: 200, patience_ms: 60_000 };
// @ts-expect-error  an effect may be none
const first: string = new Monitor(timing, false, at).check()[0];
// @ts-expect-error  before the first round trip there is none
const srtt: number = new Monitor(timing, false, at).srtt;
// @ts-expect-error  only the owner of time says what time it is
new Monitor(timing, false, at).heard(7);
// @ts-expect-error  no way to send
const mute: Transport = { bufferedAmount: 0, onopen: null, onmessage: null, onclose: null, onerror: null, close: () => {} };
