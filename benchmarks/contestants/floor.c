// The floor: as little as a server can do that answers such a ping. C, epoll, one thread, no JSON library.
//
//     gcc -O2 -o floor floor.c && ./floor PORT
//
// What it answers is right for what the load generator sends (small, unfragmented, masked text frames), and it closes on
// everything else. It is a measure for the others and no server to use.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096
#define ROOM 1024

typedef struct {
  int fd, open, length;
  uint8_t bytes[ROOM];
} connection;

static int poller, open_connections;

// SHA-1 (RFC 3174) of a text of at most 119 bytes, which are two blocks.
static void sha1(const char *text, size_t length, uint8_t digest[20]) {
  uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}, w[80];
  uint8_t padded[128] = {0};
  size_t size = length < 56 ? 64 : 128;
  memcpy(padded, text, length);
  padded[length] = 0x80;
  padded[size - 2] = length * 8 >> 8;
  padded[size - 1] = length * 8;
  for (size_t block = 0; block < size; block += 64) {
    for (int i = 0; i < 80; i++) {
      if (i < 16) {
        const uint8_t *p = padded + block + 4 * i;
        w[i] = (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
      } else {
        uint32_t mixed = w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16];
        w[i] = mixed << 1 | mixed >> 31;
      }
    }
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 80; i++) {
      uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 ? b ^ c ^ d : i < 60 ? (b & c) | (b & d) | (c & d) : b ^ c ^ d;
      uint32_t k = i < 20 ? 0x5a827999 : i < 40 ? 0x6ed9eba1 : i < 60 ? 0x8f1bbcdc : 0xca62c1d6;
      uint32_t next = (a << 5 | a >> 27) + f + e + k + w[i];
      e = d;
      d = c;
      c = b << 30 | b >> 2;
      b = a;
      a = next;
    }
    h[0] += a;
    h[1] += b;
    h[2] += c;
    h[3] += d;
    h[4] += e;
  }
  for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - i % 4 * 8);
}

static void base64_of_digest(const uint8_t digest[20], char out[29]) {
  static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  uint8_t padded[21] = {0};
  memcpy(padded, digest, 20);
  for (int i = 0; i < 7; i++) {
    uint32_t three = padded[3 * i] << 16 | padded[3 * i + 1] << 8 | padded[3 * i + 2];
    for (int k = 0; k < 4; k++) out[4 * i + k] = letters[three >> (18 - 6 * k) & 63];
  }
  out[27] = '=';
  out[28] = 0;
}

static void end(connection *c) {
  open_connections -= c->open;
  close(c->fd);
  free(c);
}

// Whether it is still there.
static int shake(connection *c) {
  static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", header[] = "\r\nSec-WebSocket-Key: ";
  char key[64], accept[29], answer[256];
  uint8_t digest[20];
  uint8_t *stop = memmem(c->bytes, c->length, "\r\n\r\n", 4);
  if (!stop) return c->length < ROOM ? 1 : (end(c), 0);
  uint8_t *at = memmem(c->bytes, c->length, header, sizeof header - 1);
  if (!at || at + sizeof header - 1 + 24 > stop) return end(c), 0;
  memcpy(key, at + sizeof header - 1, 24);
  memcpy(key + 24, guid, sizeof guid - 1);
  sha1(key, 24 + sizeof guid - 1, digest);
  base64_of_digest(digest, accept);
  int size = snprintf(answer, sizeof answer,
                      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
  if (send(c->fd, answer, size, MSG_NOSIGNAL) != size) return end(c), 0;
  c->length -= stop + 4 - c->bytes;
  memmove(c->bytes, stop + 4, c->length);
  c->open = 1;
  open_connections++;
  return 1;
}

// The text as it came, with the answerer's members before its last brace. Whether it is still there.
static int answer(connection *c, uint8_t *text, int length) {
  uint8_t out[256];
  if (!memmem(text, length, "\"type\":\"ping\"", 13) || text[length - 1] != '}') return 1;
  int more = snprintf((char *)out + 4 + length - 1, 64, ",\"status\":\"pong\",\"clients\":%d}", open_connections);
  int size = length - 1 + more, head = size < 126 ? 2 : 4;
  uint8_t *from = out + 4 - head;
  from[0] = 0x81;
  from[1] = size < 126 ? size : 126;
  if (head == 4) {
    from[2] = size >> 8;
    from[3] = size;
  }
  memcpy(out + 4, text, length - 1);
  if (send(c->fd, from, head + size, MSG_NOSIGNAL) == head + size) return 1;
  return end(c), 0;
}

static void take_frames(connection *c) {
  int from = 0;
  while (c->length - from >= 6) {
    uint8_t *b = c->bytes + from;
    int length = b[1] & 127;
    if (b[0] != 0x81 || !(b[1] & 128) || length > 125 || length < 1) return end(c);
    if (c->length - from < 6 + length) break;
    for (int i = 0; i < length; i++) b[6 + i] ^= b[2 + (i & 3)];
    if (!answer(c, b + 6, length)) return;
    from += 6 + length;
  }
  c->length -= from;
  memmove(c->bytes, c->bytes + from, c->length);
}

static void ready(connection *c) {
  int got = recv(c->fd, c->bytes + c->length, ROOM - c->length, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return end(c);
  c->length += got;
  if (c->open || (shake(c) && c->open)) take_frames(c);
}

static void accept_all(int listener) {
  static const int one = 1;
  for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
    connection *c = calloc(1, sizeof *c);
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = c};
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted);
  }
}

static int listen_on(int port) {
  static const int one = 1;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, BACKLOG)) {
    perror("floor");
    exit(1);
  }
  return listener;
}

int main(int argc, char **argv) {
  static struct epoll_event events[1024];
  struct rlimit files;
  if (argc != 2) return fprintf(stderr, "floor: a port is wanted\n"), 2;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int listener = listen_on(atoi(argv[1]));
  struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL};
  poller = epoll_create1(0);
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wanted);
  for (;;) {
    int count = epoll_wait(poller, events, 1024, -1);
    for (int i = 0; i < count; i++) {
      if (events[i].data.ptr)
        ready(events[i].data.ptr);
      else
        accept_all(listener);
    }
  }
}
