// A program under Node, which knows nothing of a page: no type of a browser's is needed.

import WebSocket from "ws";
import { HeartbeatClient } from "txheartbeat";

const client = new HeartbeatClient("ws://127.0.0.1:9000/ws", { WebSocket });
client.linkChanged = (status) => console.log(status.event, status.detail);
client.close();
