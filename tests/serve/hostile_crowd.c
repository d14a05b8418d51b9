// hostile_crowd: those who mean harm, and those beside them who only beat. One thread, epoll, loopback only.
//
//     gcc -O2 -o hostile_crowd hostile_crowd.c
//     hostile_crowd PORT good COUNT        beat once a second each, and measure how long the pongs take
//     hostile_crowd PORT crowd COUNT       slow handshakes, silence, half frames, floods, nonsense, non-readers, loops
//     hostile_crowd PORT KIND COUNT        one of these alone, by its name
//
// SIGUSR1 prints what was seen since the last time, as one JSON object; SIGTERM ends it, and all of its connections.
//
// A pong has taken the time from when its ping was given to the kernel to when the kernel had it here, by the kernel's own
// stamp: not to when this program came to read it, which beside a crowd on the same core is often later, and is nothing
// that the server has done. Both by the system clock, which nobody must set meanwhile.
//
// Each of the crowd does what it does by the clock, whatever the server answers, and comes back five to fifteen seconds
// after it was sent away. Each hundred of it have an address of their own in 127.0.0.0/8; those who beat are all
// 127.0.0.1.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define AN_ADDRESS 100
#define SECOND 1000000000ull
#define SAMPLES 2000000
// Opened each two milliseconds: a thousand in a second.
#define AT_ONCE 2

enum kind { GOOD, SLOW, SILENT, HALF, JSON_FLOOD, PING_FLOOD, PONG_FLOOD, PIECES, BURST, NONSENSE, OVERSIZED, DEAF, LOOP, KINDS };
static const char *names[KINDS] = {"good",       "slow",   "silent", "half",     "json_flood", "ping_flood", "pong_flood",
                                   "fragments", "bursts", "nonsense", "oversized", "deaf",       "loop"};
// Of each thousand of the crowd.
static const int shares[KINDS] = {0, 252, 252, 200, 10, 8, 6, 4, 2, 20, 50, 2, 194};
// What each does: once in so many milliseconds.
static const int periods[KINDS] = {1000, 1000, 1000, 1000, 100, 100, 100, 100, 1000, 1000, 1000, 50, 1000};

enum state { AWAY, CONNECTING, SHAKING, OPEN };

typedef struct {
  int fd, kind, state, done, length;
  uint64_t next_at, sent_at;
  uint8_t bytes[400];
} connection;

static connection *all;
static int count, port, poller, good;
static uint32_t *samples, sampled;
static uint64_t opened[KINDS], ended[KINDS], refused[KINDS], acted[KINDS];
static long clients = -1;
static volatile sig_atomic_t tell, leave;
static uint8_t flood[13][70000];
static int flood_length[KINDS];
static char request[300];
static int request_length;

static uint64_t nanoseconds(const struct timespec *t) { return t->tv_sec * SECOND + t->tv_nsec; }

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return nanoseconds(&t);
}

// As the kernel stamps what it receives.
static uint64_t stamp(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return nanoseconds(&t);
}

// A masked frame of RFC 6455 that claims to hold `claimed` bytes; its mask is nought. Returns its length.
static int frame(uint8_t *out, int first, const void *payload, int length, int claimed) {
  int head = 2;
  out[0] = first;
  if (claimed < 126) {
    out[1] = 0x80 | claimed;
  } else if (claimed < 65536) {
    out[1] = 0x80 | 126, out[2] = claimed >> 8, out[3] = claimed;
    head = 4;
  } else {
    out[1] = 0x80 | 127;
    for (int i = 0; i < 8; i++) out[2 + i] = (uint64_t)claimed >> (56 - 8 * i);
    head = 10;
  }
  memset(out + head, 0, 4);
  memcpy(out + head + 4, payload, length);
  return head + 4 + length;
}

static void repeat(int kind, int times, int first, const char *payload) {
  for (int i = 0; i < times; i++)
    flood_length[kind] += frame(flood[kind] + flood_length[kind], first, payload, strlen(payload), strlen(payload));
}

static void prepare(void) {
  static char padded[1000];
  int at = sprintf(padded, "{\"type\":\"ping\",\"x\":\"");
  memset(padded + at, 'x', 900);
  strcpy(padded + at + 900, "\"}");
  // Five times what each may send.
  repeat(JSON_FLOOD, 100, 0x81, "{\"type\":\"ping\"}");
  repeat(PING_FLOOD, 100, 0x89, "x");
  repeat(PONG_FLOOD, 100, 0x8a, "x");
  repeat(PIECES, 1, 0x01, "x");
  repeat(PIECES, 99, 0x00, "x");
  // As much as is read at a time, each second.
  repeat(BURST, 3000, 0x81, "{\"type\":\"ping\"}");
  repeat(NONSENSE, 5, 0x81, "{\"type\":\"ping\",");
  repeat(DEAF, 5, 0x81, padded);
  flood_length[HALF] = frame(flood[HALF], 0x81, "{\"type\":\"", 9, 60000);
  flood_length[OVERSIZED] = frame(flood[OVERSIZED], 0x81, "{\"type\":\"", 9, 100000000);
  request_length = snprintf(request, sizeof request,
                            "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                            port);
}

static void watch(connection *c, int operation, uint32_t events) {
  struct epoll_event wanted = {.events = events, .data.ptr = c};
  epoll_ctl(poller, operation, c->fd, &wanted);
}

// A part of so many milliseconds, by its number: in an order in which neighbours in time are none in number.
static uint64_t spread(const connection *c, int milliseconds) {
  return (uint64_t)((c - all) * 7919ll % count) * milliseconds * 1000000 / count;
}

static void end(connection *c, uint64_t at) {
  if (c->state == OPEN || c->kind == SLOW || c->kind == SILENT) ended[c->kind]++;
  close(c->fd);
  c->fd = -1;
  c->state = AWAY;
  c->next_at = at + 5 * SECOND + spread(c, 10000);
}

static void start(connection *c, uint64_t at) {
  static const int one = 1, little = 2048;
  int number = c - all;
  struct linger reset = {1, 0};
  struct sockaddr_in address = {.sin_family = AF_INET};
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (c->fd < 0) {
    perror("socket");
    exit(1);
  }
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (good && setsockopt(c->fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one)) {
    perror("SO_TIMESTAMPNS");
    exit(1);
  }
  if (c->kind == DEAF) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
  address.sin_addr.s_addr = htonl(good ? INADDR_LOOPBACK : INADDR_LOOPBACK + 256 * (1 + number / AN_ADDRESS));
  setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  if (bind(c->fd, (void *)&address, sizeof address)) {
    perror("bind");
    exit(1);
  }
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  c->state = CONNECTING;
  c->done = c->length = 0;
  if (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS) return end(c, at);
  watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void put(connection *c, const void *bytes, int length, uint64_t at) {
  // What finds no room is not sent: half of it may be, which is one more way to be wrong.
  if (send(c->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN) end(c, at);
}

// Its time has come.
static void act(connection *c, uint64_t at) {
  c->next_at = at + periods[c->kind] * 1000000ull;
  if (c->state == SHAKING && c->kind == SLOW) {
    put(c, request + c->done % request_length, 1, at);
    c->done++;
    return;
  }
  if (c->state != OPEN) return;
  acted[c->kind]++;
  if (c->kind == GOOD && c->sent_at) {
    // One is out: its answer is measured, however late.
    return;
  } else if (c->kind == GOOD) {
    uint8_t out[80];
    char text[50];
    int length = sprintf(text, "{\"type\":\"ping\",\"n\":%d}", ++c->done);
    c->sent_at = stamp();
    put(c, out, frame(out, 0x81, text, length, length), at);
  } else if (c->kind == LOOP) {
    end(c, at);
  } else if (c->kind != HALF || !c->done++) {
    put(c, flood[c->kind], flood_length[c->kind], at);
  } else {
    put(c, "x", 1, at);
  }
}

static void connected(connection *c, uint64_t at) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) return end(c, at);
  c->state = SHAKING;
  watch(c, EPOLL_CTL_MOD, EPOLLIN);
  if (c->kind != SLOW && c->kind != SILENT) put(c, request, request_length, at);
}

// The frames that a good one gets, the last bytes of which the kernel had at that time; the others look at nothing.
static void take(connection *c, uint64_t at, uint64_t arrived) {
  int from = 0;
  while (c->state == OPEN && c->length - from >= 2) {
    uint8_t *b = c->bytes + from;
    int length = b[1];
    if (length > 125) {
      fprintf(stderr, "a long frame\n");
      exit(1);
    }
    if (c->length - from < 2 + length) break;
    if (b[0] == 0x89) {
      uint8_t out[140];
      put(c, out, frame(out, 0x8a, b + 2, length, length), at);
    } else if (b[0] == 0x88) {
      fprintf(stderr, "a good one was closed: %d\n", length > 1 ? b[2] << 8 | b[3] : 0);
      return end(c, at);
    } else if (c->sent_at) {
      uint8_t *found = memmem(b + 2, length, "\"clients\":", 10);
      if (found) clients = atol((char *)found + 10);
      if (sampled < SAMPLES) samples[sampled++] = (arrived - c->sent_at) / 1000;
      c->sent_at = 0;
    }
    from += 2 + length;
  }
  memmove(c->bytes, c->bytes + from, c->length - from);
  c->length -= from;
}

// As recv, and when the kernel had it; where it does not say, that is now, which is no earlier.
static int receive(int fd, void *into, int room, uint64_t *arrived) {
  char control[CMSG_SPACE(sizeof(struct timespec))];
  struct iovec bytes = {.iov_base = into, .iov_len = room};
  struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  int got = recvmsg(fd, &message, 0);
  *arrived = stamp();
  if (got > 0)
    for (struct cmsghdr *told = CMSG_FIRSTHDR(&message); told; told = CMSG_NXTHDR(&message, told))
      if (told->cmsg_level == SOL_SOCKET && told->cmsg_type == SCM_TIMESTAMPNS)
        *arrived = nanoseconds((struct timespec *)CMSG_DATA(told));
  return got;
}

static void ready(connection *c) {
  static uint8_t scratch[65536];
  uint64_t at = now();
  if (c->state == CONNECTING) return connected(c, at);
  if (c->kind == DEAF && c->state == OPEN) return;
  int keeps = c->state == SHAKING || good;
  int room = keeps ? (int)sizeof c->bytes - 1 - c->length : (int)sizeof scratch;
  uint64_t arrived;
  int got = receive(c->fd, keeps ? c->bytes + c->length : scratch, room, &arrived);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) return end(c, at);
  if (!keeps) return;
  c->length += got;
  c->bytes[c->length] = 0;
  if (c->state == SHAKING) {
    char *rest = strstr((char *)c->bytes, "\r\n\r\n");
    if (!rest && c->length < (int)sizeof c->bytes - 1) return;
    if (!rest || memcmp(c->bytes + 9, "101", 3)) {
      refused[c->kind]++;
      return end(c, at);
    }
    c->length -= (uint8_t *)rest + 4 - c->bytes;
    memmove(c->bytes, rest + 4, c->length);
    c->state = OPEN;
    c->done = 0;
    opened[c->kind]++;
    if (c->kind == DEAF) watch(c, EPOLL_CTL_MOD, 0);
    c->next_at = at + spread(c, periods[c->kind]);
  }
  if (good) take(c, at, arrived);
}

static int by_size(const void *a, const void *b) {
  return *(const uint32_t *)a < *(const uint32_t *)b ? -1 : *(const uint32_t *)a > *(const uint32_t *)b;
}

static void report(void) {
  int open = 0;
  for (int i = 0; i < count; i++) open += all[i].state == OPEN;
  printf("{\"event\":\"seen\",\"open\":%d,\"clients\":%ld,\"pongs\":%u", open, clients, sampled);
  if (sampled) {
    qsort(samples, sampled, sizeof *samples, by_size);
    printf(",\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u", samples[sampled / 2], samples[(uint64_t)sampled * 99 / 100],
           samples[sampled - 1]);
  }
  for (int kind = 0; kind < KINDS; kind++)
    if (opened[kind] + ended[kind] + refused[kind] + acted[kind])
      printf(",\"%s\":{\"opened\":%lu,\"ended\":%lu,\"refused\":%lu,\"acted\":%lu}", names[kind], opened[kind],
             ended[kind], refused[kind], acted[kind]);
  printf("}\n");
  fflush(stdout);
  sampled = 0;
  memset(opened, 0, sizeof opened);
  memset(ended, 0, sizeof ended);
  memset(refused, 0, sizeof refused);
  memset(acted, 0, sizeof acted);
}

static void noted(int number) {
  if (number == SIGUSR1)
    tell = 1;
  else
    leave = 1;
}

static void turn(void) {
  static struct epoll_event events[1024];
  int some = epoll_wait(poller, events, 1024, 1), begun = 0;
  for (int i = 0; i < some; i++) {
    connection *c = events[i].data.ptr;
    if (c->state != AWAY) ready(c);
  }
  static uint64_t looked;
  uint64_t at = now();
  if (at - looked < 2000000) return;
  looked = at;
  for (int i = 0; i < count; i++) {
    connection *c = all + i;
    if (c->next_at > at) continue;
    if (c->state != AWAY)
      act(c, at);
    else if (begun++ < AT_ONCE && !(good && ended[GOOD]))
      start(c, at);
  }
}

int main(int argc, char **argv) {
  struct rlimit files;
  if (argc != 4) return 2;
  port = atoi(argv[1]);
  good = !strcmp(argv[2], "good");
  count = atoi(argv[3]);
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGUSR1, noted);
  signal(SIGTERM, noted);
  all = calloc(count, sizeof *all);
  samples = malloc(SAMPLES * sizeof *samples);
  poller = epoll_create1(0);
  prepare();
  int alone = KINDS;
  while (--alone > GOOD && strcmp(argv[2], names[alone])) continue;
  if (!good && !alone && strcmp(argv[2], "crowd")) return 2;
  for (int i = 0; i < count; i++) {
    int kind = alone;
    // Neighbours in number are of different kinds, and so are those of one address.
    if (!good && !alone)
      for (int left = i % 1000 * 389 % 1000; (left -= shares[++kind]) >= 0;) continue;
    all[i].kind = kind;
    all[i].fd = -1;
  }
  printf("{\"event\":\"ready\"}\n");
  fflush(stdout);
  while (!leave) {
    turn();
    if (tell) {
      tell = 0;
      report();
    }
  }
  report();
  return 0;
}
