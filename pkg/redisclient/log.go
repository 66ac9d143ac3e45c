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

// logEvery is the shortest interval between two lines of a kind.
const logEvery = 10 * time.Second

// LogTo writes the lines of the client library to log, at most one each ten seconds. The library has one logger for the
// process, which writes text to standard error by default.
func LogTo(log *slog.Logger) { redis.SetLogger(&clientLogger{limit: NewLogLimit(log)}) }

type clientLogger struct{ limit *LogLimit }

// Printf implements the logger of the library.
func (l *clientLogger) Printf(ctx context.Context, format string, values ...any) {
	text := strings.TrimPrefix(strings.TrimSpace(fmt.Sprintf(format, values...)), "redis: ")
	l.limit.Log(ctx, slog.LevelWarn, "", "redis client", "detail", text)
}

// LogLimit logs at most one line of a kind each ten seconds. During an outage of Redis, the libraries that use it log
// several lines a second. It is safe for concurrent use.
type LogLimit struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[string]*lastLine
}

// lastLine is when a line of a kind was logged, and how many were dropped since.
type lastLine struct {
	at      time.Time
	dropped int
}

// NewLogLimit returns a limit of what is written to log.
func NewLogLimit(log *slog.Logger) *LogLimit {
	return &LogLimit{log: log, kinds: map[string]*lastLine{}}
}

// Log logs a line with the number of lines of its kind that were dropped before it, or drops it. The kinds must be few.
func (l *LogLimit) Log(ctx context.Context, level slog.Level, kind, message string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.kinds[kind]
	if last == nil {
		last = &lastLine{}
		l.kinds[kind] = last
	}
	now := time.Now()
	if now.Sub(last.at) < logEvery {
		last.dropped++
		return
	}
	l.log.Log(ctx, level, message, append(args, "dropped", last.dropped)...)
	*last = lastLine{at: now}
}
