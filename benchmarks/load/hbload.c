// hbload: the load of the benchmarks. One thread, epoll, loopback only, one JSON object on standard output.
//
//     gcc -O2 -o hbload hbload.c                                  without TLS
//     gcc -O2 -DTLS -o hbload hbload.c -lssl -lcrypto             with it
//
// Modes (-m), of -n connections:
//   ping   closed loop: the answer of a ping is followed by the next ping, -P of them in flight a connection
//   idle   each connection beats every -i seconds, evenly spread, whether or not it was answered
//   storm  opening handshakes as fast as they are answered, at most -c in flight, -R times
//   mem    the server's memory at -a connections, at -n, and after each has been answered once
//   hold   silent connections, which answer the server's own pings
//
// Measured for -d seconds, after -w seconds in which nothing counts. SIGUSR1 begins the measured time anew,
// SIGTERM ends it: so another load beside it can be what is measured. The process of -s is the server, whose time on
// a processor and whose memory are read from /proc.
//
// How it speaks: -u path, -e Engine.IO, -D offers permessage-deflate (and sends nothing compressed), -T TLS (mode ping;
// the certificate is not verified), -1 opens a session of txheartbeat's before a connection counts as open, -A does that
// and has a numbered message go out before each ping, in the same write, which the pong has to confirm.
//
// It is written in C because a load that is slower than the server measures itself.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

// A loopback address has room for some 28,000 connections to one port; more come from further addresses.
#define CONNECTIONS_AN_ADDRESS 20000
// Pings that may be in flight on a connection.
#define IN_FLIGHT 64
// Histograms count microseconds, up to ten seconds.
#define MICROSECONDS 10000000
#define OPEN_PATIENCE_NS 60000000000ull
#define ANSWER_PATIENCE_NS 30000000000ull
#define ENGINE_IO_PATH "/engine.io/?EIO=4&transport=websocket"
#define OPENING "{\"type\":\"onopen\",\"v\":1,\"beats\":\"client\",\"session\":null}"

enum state { CONNECTING, SECURING, SHAKING, GREETING, OPEN, DEAD };

typedef struct {
  int fd;
  uint8_t state, in_flight;
  int length;           // of what lies in `bytes`
  uint32_t head, tail;  // of the rings below
  uint32_t numbered;    // the latest number that went out
  uint64_t started;
  uint64_t sent_at[IN_FLIGHT];
  uint32_t ids[IN_FLIGHT], numbers[IN_FLIGHT];
  uint64_t next_at;
#ifdef TLS
  SSL *tls;
#endif
  uint8_t bytes[1500];  // left as it is at a new start
} connection;

typedef struct {
  uint32_t *microseconds;
  uint64_t count, most;
} histogram;

static const char *mode = "ping", *path = "/", *host = "127.0.0.1";
static int port = 9000, count = 100, pipelined = 1, server_pid, handshakes_in_flight = 256, at_first = 1000;
static int repeats = 1, engine_io, level1, acknowledged, secure, deflate;
static double seconds = 3, warm_up = 0.5, interval = 25;

static connection *connections;
static int poller, open_now, dead, started, shaking, measuring;
static uint32_t ping_id = 1000000000u;
static uint64_t chance = 88172645463325252ull;
static histogram answers, handshakes;
static uint64_t bad, frame_pings, engine_pings, confirmed, compressed;
static volatile sig_atomic_t begin_anew, end_now;
#ifdef TLS
static SSL_CTX *tls_context;
#endif

// Time, chance, what the kernel knows.

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint32_t random_mask(void) {
  chance ^= chance << 13;
  chance ^= chance >> 7;
  chance ^= chance << 17;
  return (uint32_t)(chance >> 16);
}

// Seconds that all threads of a process have been on a processor, to the nanosecond.
static double processor_seconds(int pid) {
  char name[400];
  snprintf(name, sizeof name, "/proc/%d/task", pid);
  DIR *tasks = pid ? opendir(name) : NULL;
  if (!tasks) return 0;
  double sum = 0;
  for (struct dirent *task; (task = readdir(tasks));) {
    if (task->d_name[0] == '.') continue;
    snprintf(name, sizeof name, "/proc/%d/task/%s/schedstat", pid, task->d_name);
    FILE *file = fopen(name, "r");
    if (!file) continue;
    unsigned long long ns = 0;
    if (fscanf(file, "%llu", &ns) == 1) sum += ns / 1e9;
    fclose(file);
  }
  closedir(tasks);
  return sum;
}

// The number behind `word` in a file of /proc, in KiB.
static double kib_in(const char *name, const char *word) {
  char line[256];
  FILE *file = fopen(name, "r");
  double kib = 0;
  if (!file) return 0;
  while (fgets(line, sizeof line, file))
    if (!strncmp(line, word, strlen(word))) kib = atof(line + strlen(word));
  fclose(file);
  return kib;
}

static double resident_kib(void) {
  char name[64];
  snprintf(name, sizeof name, "/proc/%d/status", server_pid);
  return server_pid ? kib_in(name, "VmRSS:") : 0;
}

// What was counted.

static void add(histogram *h, uint64_t ns) {
  uint64_t us = ns / 1000;
  if (us > h->most) h->most = us;
  h->microseconds[us < MICROSECONDS ? us : MICROSECONDS - 1]++;
  h->count++;
}

static double percentile(const histogram *h, double part) {
  uint64_t wanted = (uint64_t)(part * h->count), sum = 0;
  if (!h->count) return -1;
  for (int us = 0; us < MICROSECONDS; us++)
    if ((sum += h->microseconds[us]) > wanted) return us;
  return MICROSECONDS;
}

// Only as far as anything was counted: what is measured goes on meanwhile.
static void clear(histogram *h) {
  memset(h->microseconds, 0, sizeof(uint32_t) * (h->most < MICROSECONDS ? h->most + 1 : MICROSECONDS));
  h->count = h->most = 0;
}

// Connections: their end, their bytes, their frames.

static void end(connection *c, const char *why) {
  if (c->state == DEAD) return;
  if (dead < 3) fprintf(stderr, "connection %ld: %s (%s)\n", (long)(c - connections), why, strerror(errno));
  if (c->state == OPEN)
    open_now--;
  else
    shaking--;
  c->state = DEAD;
  dead++;
  close(c->fd);
  c->fd = -1;
}

static void put(connection *c, const uint8_t *bytes, int length, const char *what) {
#ifdef TLS
  if (c->tls) {
    // What we send is small, and the server reads: it never has to wait for room.
    if (SSL_write(c->tls, bytes, length) != length) end(c, what);
    return;
  }
#endif
  if (send(c->fd, bytes, length, MSG_NOSIGNAL) != length) end(c, what);
}

// How many bytes came, 0 at the end, -1 when none are there.
static int get(connection *c, uint8_t *bytes, int room) {
#ifdef TLS
  if (c->tls) {
    int got = SSL_read(c->tls, bytes, room);
    if (got > 0) return got;
    return SSL_get_error(c->tls, got) == SSL_ERROR_WANT_READ ? -1 : 0;
  }
#endif
  int got = recv(c->fd, bytes, room, 0);
  return got >= 0 ? got : errno == EAGAIN || errno == EINTR ? -1 : 0;
}

// A masked frame of RFC 6455, of at most 125 bytes; returns its length.
static int frame(uint8_t *out, int opcode, const void *payload, int length) {
  uint32_t mask = random_mask();
  out[0] = 0x80 | opcode;
  out[1] = 0x80 | length;
  memcpy(out + 2, &mask, 4);
  for (int i = 0; i < length; i++) out[6 + i] = ((const uint8_t *)payload)[i] ^ ((uint8_t *)&mask)[i & 3];
  return 6 + length;
}

static void put_frame(connection *c, int opcode, const void *payload, int length) {
  uint8_t out[160];
  put(c, out, frame(out, opcode, payload, length), "send");
}

static void ping(connection *c, uint64_t at) {
  char payload[126];
  uint8_t out[320];
  uint32_t id = ++ping_id, slot = c->head++ % IN_FLIGHT;
  int size = 0, length;
  if (acknowledged) {
    length = snprintf(payload, sizeof payload, "{\"type\":\"onecho\",\"seq\":%u,\"ack\":0}", ++c->numbered);
    size = frame(out, 1, payload, length);
  }
  if (level1)
    length = snprintf(payload, sizeof payload, "{\"type\":\"ping\",\"id\":%u,\"ack\":0}", id);
  else
    length = snprintf(payload, sizeof payload, "%s{\"type\":\"ping\",\"seq\":%u,\"ts\":1700000000000}",
                      engine_io ? "4" : "", id);
  size += frame(out + size, 1, payload, length);
  c->sent_at[slot] = at;
  c->ids[slot] = id;
  c->numbers[slot] = c->numbered;
  c->in_flight++;
  put(c, out, size, "send");
}

// The number behind the last "ack": of a text; -1 without one.
static long acknowledgement(const uint8_t *text, int length) {
  static const char word[] = "\"ack\":";
  const int size = sizeof word - 1;
  for (int at = length - size; at >= 0; at--)
    if (!memcmp(text + at, word, size)) {
      long number = -1;
      for (at += size; at < length && text[at] >= '0' && text[at] <= '9'; at++)
        number = (number < 0 ? 0 : number * 10) + text[at] - '0';
      return number;
    }
  return -1;
}

static int is_pong(const uint8_t *text, int length, uint32_t id) {
  char digits[16];
  int size = snprintf(digits, sizeof digits, "%u", id);
  return memmem(text, length, digits, size) && memmem(text, length, "\"pong\"", 6);
}

static void opened(connection *c, uint64_t at) {
  add(&handshakes, at - c->started);
  shaking--;
  c->state = OPEN;
  open_now++;
}

static void answered(connection *c, const uint8_t *text, int length, int is_compressed, uint64_t at) {
  uint32_t slot = c->tail++ % IN_FLIGHT;
  c->in_flight--;
  int good = is_compressed || is_pong(text, length, c->ids[slot]);
  compressed += is_compressed;
  if (acknowledged) {
    int reached = acknowledgement(text, length) >= (long)c->numbers[slot];
    if (measuring) confirmed += reached;
    good = good && reached;
  }
  if (!good && !bad++) fprintf(stderr, "bad answer to %u: %.*s\n", c->ids[slot], length, text);
  if (measuring) add(&answers, at - c->sent_at[slot]);
  if (mode[0] == 'p') ping(c, now());
}

static void take_text(connection *c, const uint8_t *text, int length, int is_compressed, uint64_t at) {
  if (engine_io && length >= 1 && text[0] != '4') {
    // Its packets: 2 is a ping, 3 its answer, 0 what is said at the opening.
    if (text[0] == '2') {
      engine_pings++;
      put_frame(c, 1, "3", 1);
    }
  } else if (c->state == GREETING) {
    if (memmem(text, length, "\"sid\"", 5))
      opened(c, at);
    else
      end(c, "the opening was not answered by a session");
  } else if (level1 && length > 13 && !memcmp(text, "{\"type\":\"ack\"", 13)) {
    // Its pongs confirm too, and are what is looked at.
  } else if (c->in_flight) {
    answered(c, text, length, is_compressed, at);
  } else {
    bad++;
  }
}

static void take_frames(connection *c, uint64_t at) {
  int from = 0;
  while ((c->state == OPEN || c->state == GREETING) && c->length - from >= 2) {
    uint8_t *b = c->bytes + from;
    int opcode = b[0] & 15, length = b[1] & 127, head = 2;
    if (b[1] & 128 || length == 127) return end(c, b[1] & 128 ? "a masked frame" : "a huge frame");
    if (length == 126) {
      if (c->length - from < 4) break;
      length = b[2] << 8 | b[3];
      head = 4;
    }
    if (head + length > (int)sizeof c->bytes) return end(c, "a frame without room");
    if (c->length - from < head + length) break;
    if (opcode == 8) return end(c, "closed by the server");
    if (opcode == 1 || opcode == 2) take_text(c, b + head, length, b[0] >> 6 & 1, at);
    if (opcode == 9) {
      frame_pings++;
      put_frame(c, 10, b + head, length);
    }
    from += head + length;
  }
  memmove(c->bytes, c->bytes + from, c->length - from);
  c->length -= from;
}

// Handshakes.

static void watch(connection *c, int operation, uint32_t events) {
  struct epoll_event wanted = {.events = events, .data.ptr = c};
  epoll_ctl(poller, operation, c->fd, &wanted);
}

static void start(connection *c, int number) {
  static const int one = 1;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0) {
    perror("socket");
    exit(1);
  }
  memset(c, 0, offsetof(connection, bytes));
  c->fd = fd;
  c->started = now();
  shaking++;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  // Closed by a reset, so that no sockets of the rounds before lie in TIME_WAIT.
  struct linger reset = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  struct sockaddr_in address = {.sin_family = AF_INET};
  if (count > CONNECTIONS_AN_ADDRESS || repeats > 1) {
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + number / CONNECTIONS_AN_ADDRESS);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (void *)&address, sizeof address)) {
      perror("bind");
      exit(1);
    }
  }
  inet_pton(AF_INET, host, &address.sin_addr);
  address.sin_port = htons(port);
  if (connect(fd, (void *)&address, sizeof address) && errno != EINPROGRESS) return end(c, "connect");
  watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void ask(connection *c) {
  char request[512];
  int length = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                        path, port, deflate ? "Sec-WebSocket-Extensions: permessage-deflate\r\n" : "");
  c->state = SHAKING;
  watch(c, EPOLL_CTL_MOD, EPOLLIN);
  put(c, (uint8_t *)request, length, "send the handshake");
}

static void secured(connection *c) {
#ifdef TLS
  if (!c->tls) {
    c->tls = SSL_new(tls_context);
    SSL_set_fd(c->tls, c->fd);
  }
  int done = SSL_connect(c->tls);
  if (done == 1) return ask(c);
  int error = SSL_get_error(c->tls, done);
  if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) return end(c, "TLS");
  watch(c, EPOLL_CTL_MOD, error == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
#else
  (void)c;
#endif
}

static void connected(connection *c) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  errno = error;
  if (error) return end(c, "connect");
  if (!secure) return ask(c);
  c->state = SECURING;
  secured(c);
}

static void take_handshake(connection *c, uint64_t at) {
  uint8_t *rest = memmem(c->bytes, c->length, "\r\n\r\n", 4);
  if (!rest) return;
  if (memcmp(c->bytes + 9, "101", 3)) {
    if (dead < 3) fprintf(stderr, "%.*s\n", (int)(rest - c->bytes), c->bytes);
    return end(c, "refused");
  }
  rest += 4;
  c->length -= rest - c->bytes;
  memmove(c->bytes, rest, c->length);
  if (level1) {
    c->state = GREETING;
    put_frame(c, 1, OPENING, sizeof OPENING - 1);
  } else {
    opened(c, at);
  }
  take_frames(c, at);
}

static void ready(connection *c) {
  if (c->state == CONNECTING) return connected(c);
  if (c->state == SECURING) return secured(c);
  while (c->state != DEAD) {
    int room = sizeof c->bytes - c->length, got = get(c, c->bytes + c->length, room);
    uint64_t at = now();
    if (got < 0) return;
    if (got == 0) return end(c, "the end");
    c->length += got;
    if (c->state == SHAKING)
      take_handshake(c, at);
    else
      take_frames(c, at);
    // TLS may keep decrypted bytes of which the kernel says nothing.
    if (got < room && !secure) return;
  }
}

static int turn(int ms) {
  static struct epoll_event events[4096];
  int ready_now = epoll_wait(poller, events, 4096, ms);
  for (int i = 0; i < ready_now; i++) ready(events[i].data.ptr);
  return ready_now;
}

static uint64_t idle_ns;

// Never asleep: a server on the same machine would pay for waking us, by an interrupt to the other core, which it does
// not pay for clients elsewhere. What it spends in vain is idle time, all the same.
static void turn_awake(void) {
  uint64_t since = now();
  if (!turn(0)) idle_ns += now() - since;
}

static void turn_for(double some_seconds) {
  for (uint64_t until = now() + some_seconds * 1e9; now() < until;) turn(10);
}

// Until so many are open, or have failed.
static void open_until(int wanted) {
  uint64_t since = now();
  while (open_now + dead < wanted) {
    for (; started < wanted && shaking < handshakes_in_flight; started++) start(connections + started, started);
    turn(100);
    if (now() - since > OPEN_PATIENCE_NS) {
      fprintf(stderr, "after a minute %d are open and %d failed\n", open_now, dead);
      break;
    }
  }
}

// The modes.

static void storm(void) {
  printf("{\"mode\":\"storm\",\"n\":%d,\"c\":%d,\"runs\":[", count, handshakes_in_flight);
  for (int run = 0; run < repeats; run++) {
    open_now = dead = shaking = started = 0;
    clear(&handshakes);
    double processor = processor_seconds(server_pid);
    uint64_t since = now();
    open_until(count);
    double secs = (now() - since) / 1e9;
    processor = processor_seconds(server_pid) - processor;
    printf("%s{\"open\":%d,\"dead\":%d,\"secs\":%.4f,\"hs_per_s\":%.1f,\"cpu_us_per_hs\":%.2f,\"hs_p50_us\":%.0f,"
           "\"hs_p99_us\":%.0f,\"hs_max_us\":%lu}",
           run ? "," : "", open_now, dead, secs, open_now / secs, open_now ? processor / open_now * 1e6 : 0,
           percentile(&handshakes, .5), percentile(&handshakes, .99), handshakes.most);
    fflush(stdout);
    for (int i = 0; i < started; i++)
      if (connections[i].state != DEAD) close(connections[i].fd);
    if (run + 1 < repeats) usleep(700000 + count * 60);
  }
  printf("]}\n");
}

static int unanswered(void) {
  int sum = 0;
  for (int i = 0; i < count; i++) sum += connections[i].state == OPEN && connections[i].in_flight;
  return sum;
}

static void memory(void) {
  double empty = resident_kib();
  open_until(at_first);
  turn_for(0.7);
  double few = resident_kib(), slab_few = kib_in("/proc/meminfo", "Slab:");
  open_until(count);
  turn_for(1.0);
  double all = resident_kib(), slab_all = kib_in("/proc/meminfo", "Slab:");
  for (int i = 0; i < count; i++) {
    if (connections[i].state == OPEN) ping(connections + i, now());
    if (i % 50 == 49) turn(2);
  }
  for (uint64_t until = now() + ANSWER_PATIENCE_NS; unanswered() && now() < until;) turn(10);
  turn_for(1.0);
  double pinged = resident_kib(), more = count - at_first;
  printf("{\"mode\":\"mem\",\"rss0_kb\":%.0f,\"rss_a_kb\":%.0f,\"rss_n_kb\":%.0f,\"rss_pinged_kb\":%.0f,"
         "\"kb_per_conn\":%.3f,\"kb_per_conn_pinged\":%.3f,\"slab_kb_per_conn_both_ends\":%.2f,\"open\":%d,"
         "\"dead\":%d,\"bad\":%lu,\"unanswered\":%d,\"compressed\":%lu}\n",
         empty, few, all, pinged, (all - few) / more, (pinged - few) / more, (slab_all - slab_few) / more, open_now,
         dead, bad, unanswered(), compressed);
}

typedef struct {
  uint64_t since;
  double server, load, resident;
} beginning;

static beginning begin(void) {
  clear(&answers);
  confirmed = idle_ns = 0;
  measuring = 1;
  return (beginning){now(), processor_seconds(server_pid), processor_seconds(getpid()), resident_kib()};
}

// Whether measured time is left; it may have been asked to begin anew.
static int goes_on(beginning *from) {
  if (begin_anew) {
    begin_anew = 0;
    *from = begin();
  }
  return !end_now && now() < from->since + (uint64_t)(seconds * 1e9);
}

// In an order in which neighbours in time are no neighbours in number.
static int spread(int number) { return number * 7919ll % count; }

static int *order, next_in_order;

// Ping on every connection whose time has come.
static void beat(void) {
  for (connection *c; (c = connections + order[next_in_order])->next_at <= now();) {
    if (c->state == OPEN && c->in_flight < IN_FLIGHT) ping(c, now());
    c->next_at += (uint64_t)(interval * 1e9);
    next_in_order = (next_in_order + 1) % count;
  }
  turn(1);
}

static void begin_to_beat(void) {
  order = malloc(sizeof *order * count);
  uint64_t since = now();
  for (int i = 0; i < count; i++) {
    order[spread(i)] = i;
    connections[i].next_at = since + (uint64_t)((double)spread(i) / count * interval * 1e9);
  }
  for (uint64_t until = since + (uint64_t)(warm_up * 1e9); now() < until;) beat();
}

static void report(const beginning *from, double handshake_seconds) {
  double server = processor_seconds(server_pid) - from->server, load = processor_seconds(getpid()) - from->load - idle_ns / 1e9;
  double secs = (now() - from->since) / 1e9;
  printf("{\"mode\":\"%s\",\"n\":%d,\"P\":%d,\"open\":%d,\"dead\":%d,\"bad\":%lu,\"secs\":%.3f,\"pongs\":%lu,"
         "\"rate\":%.1f,\"p50_us\":%.0f,\"p90_us\":%.0f,\"p99_us\":%.0f,\"p999_us\":%.0f,\"max_us\":%lu,"
         "\"srv_cpu_pct\":%.2f,\"srv_us_per_msg\":%.3f,\"cli_cpu_pct\":%.1f,\"rss_kb\":%.0f,\"rss_end_kb\":%.0f,"
         "\"hs_secs\":%.3f,\"wspings\":%lu,\"eiopings\":%lu,\"confirmed\":%lu,\"compressed\":%lu}\n",
         mode, count, pipelined, open_now, dead, bad, secs, answers.count, answers.count / secs,
         percentile(&answers, .5), percentile(&answers, .9), percentile(&answers, .99), percentile(&answers, .999),
         answers.most, server / secs * 100, answers.count ? server / answers.count * 1e6 : 0, load / secs * 100,
         from->resident, resident_kib(), handshake_seconds, frame_pings, engine_pings, confirmed, compressed);
}

static void open_and_speak(void) {
  uint64_t since = now();
  open_until(count);
  double handshake_seconds = (now() - since) / 1e9;
  int beats = !strcmp(mode, "idle");
  if (!strcmp(mode, "ping"))
    for (int i = 0; i < count; i++)
      for (int k = 0; k < pipelined && connections[i].state == OPEN; k++) ping(connections + i, now());
  if (beats)
    begin_to_beat();
  else
    turn_for(warm_up);
  beginning from = begin();
  while (goes_on(&from)) beats ? beat() : !strcmp(mode, "ping") ? turn_awake() : (void)turn(10);
  report(&from, handshake_seconds);
}

static void noted(int number) {
  if (number == SIGUSR1)
    begin_anew = 1;
  else
    end_now = 1;
}

static int refuse(const char *why) {
  fprintf(stderr, "hbload: %s\n", why);
  return 2;
}

static int parse(int argc, char **argv) {
  for (int option; (option = getopt(argc, argv, "m:h:p:n:d:w:P:i:s:eu:c:a:R:1ATD")) != -1;) switch (option) {
      case 'm': mode = optarg; break;
      case 'h': host = optarg; break;
      case 'p': port = atoi(optarg); break;
      case 'n': count = atoi(optarg); break;
      case 'd': seconds = atof(optarg); break;
      case 'w': warm_up = atof(optarg); break;
      case 'P': pipelined = atoi(optarg); break;
      case 'i': interval = atof(optarg); break;
      case 's': server_pid = atoi(optarg); break;
      case 'e': engine_io = 1; path = ENGINE_IO_PATH; break;
      case 'u': path = optarg; break;
      case 'c': handshakes_in_flight = atoi(optarg); break;
      case 'a': at_first = atoi(optarg); break;
      case 'R': repeats = atoi(optarg); break;
      case '1': level1 = 1; break;
      case 'A': level1 = acknowledged = 1; break;
      case 'T': secure = 1; break;
      case 'D': deflate = 1; break;
      default: return 2;
    }
  if (strncmp(host, "127.", 4)) return refuse("loopback only");
  if (pipelined < 1 || pipelined > IN_FLIGHT) return refuse("from 1 to 64 pings are in flight (-P)");
  if (count < 1 || count % 7919 == 0) return refuse("the number of connections must not be a multiple of 7919");
  if (!strcmp(mode, "mem") && at_first >= count) return refuse("fewer at first (-a) than in the end (-n)");
  if (secure && strcmp(mode, "ping")) return refuse("TLS is for mode ping");
#ifndef TLS
  if (secure) return refuse("built without TLS");
#endif
  return 0;
}

int main(int argc, char **argv) {
  int wrong = parse(argc, argv);
  if (wrong) return wrong;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  signal(SIGUSR1, noted);
  signal(SIGTERM, noted);
#ifdef TLS
  tls_context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_verify(tls_context, SSL_VERIFY_NONE, NULL);
#endif
  connections = calloc(count, sizeof *connections);
  answers.microseconds = calloc(MICROSECONDS, sizeof(uint32_t));
  handshakes.microseconds = calloc(MICROSECONDS, sizeof(uint32_t));
  poller = epoll_create1(0);
  chance ^= now();
  if (!strcmp(mode, "storm"))
    storm();
  else if (!strcmp(mode, "mem"))
    memory();
  else if (!strcmp(mode, "ping") || !strcmp(mode, "idle") || !strcmp(mode, "hold"))
    open_and_speak();
  else
    return refuse("a mode is one of ping, idle, storm, mem, hold");
  return 0;
}
