package redisclient

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// logEvery is the shortest interval between two lines of the client. During an outage its pool has several a second.
const logEvery = 10 * time.Second

// LogTo writes the lines of the client library to log, at most one each ten seconds. The library has one logger for the
// process, which writes text to standard error by default.
func LogTo(log *slog.Logger) { redis.SetLogger(&limited{log: log, now: time.Now}) }

// limited drops lines that come too soon, and counts them.
type limited struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	last    time.Time
	dropped int
}

// Printf implements the logger of the library.
func (l *limited) Printf(ctx context.Context, format string, values ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if now.Sub(l.last) < logEvery {
		l.dropped++
		return
	}
	text := strings.TrimPrefix(strings.TrimSpace(fmt.Sprintf(format, values...)), "redis: ")
	l.log.WarnContext(ctx, "redis client", "detail", text, "dropped", l.dropped)
	l.last, l.dropped = now, 0
}
