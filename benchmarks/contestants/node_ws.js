// Node and `ws`, without compression, as the documents of `ws` advise.
//
//     node node_ws.js PORT
"use strict";
const { WebSocketServer } = require("ws");

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  backlog: 4096,
  perMessageDeflate: false,
});

server.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("message", (text) => {
    const message = JSON.parse(text);
    if (message.type === "ping") {
      message.status = "pong";
      message.clients = server.clients.size;
      socket.send(JSON.stringify(message));
    }
  });
});
