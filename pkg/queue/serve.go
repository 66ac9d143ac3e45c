package queue

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	sluicev1 "github.com/sluice-fhir/sluice/proto/sluice/v1"
)

// ErrDraining is the cause of a handler's ended context when the server stops: the unit has to be handed back.
var ErrDraining = errors.New("the worker is stopping")

// Handlers process the tasks of a process; the queues of nil handlers are not served. A unit or purge whose
// handler returns an error is delivered again later; a failed pass is not, because the next one continues.
//
// A handler's context ends at the task's deadline and when the server stops. It does not end when Redis is unavailable,
// although Asynq then gives the task up after 30 s: the handler decides whether its work is still of use.
type Handlers struct {
	Unit   func(ctx context.Context, task Task) error
	Purge  func(ctx context.Context, id export.JobID) error
	Pass   func(ctx context.Context, pass string) error
	Rescue func(ctx context.Context, pass string) error
}

// ServerConfig configures Serve.
type ServerConfig struct {
	URL         string         // Redis
	Roots       *x509.CertPool // of a Redis behind rediss://; nil: the system's
	Concurrency int            // tasks at once
	Express     int            // additional slots for short units, for a process that serves units
	Drain       time.Duration  // on stop, how long running tasks may continue before they are handed back
	Logger      *slog.Logger
}

// The intervals at which an idle process polls its queues. A job waits up to four intervals between its stages; each poll
// costs Redis about 20 microseconds. The express queue carries the stages of jobs, so its interval is the shortest.
const (
	idleCheck    = 50 * time.Millisecond
	expressCheck = 20 * time.Millisecond
)

// handBack is how long handlers have to hand back their units after the drain time: they delete what they were writing
// and record the release, on stores that may be slow.
const handBack = 25 * time.Second

// Serve takes tasks until the context ends. Then it takes no more, lets running ones finish for the drain time, ends the
// contexts of the rest with the cause ErrDraining, and returns when all handlers have returned.
func Serve(ctx context.Context, cfg ServerConfig, handlers Handlers) (err error) {
	client, err := redisclient.Open(cfg.URL, redisclient.WithRoots(cfg.Roots))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	drain, startDrain := context.WithCancel(context.WithoutCancel(ctx))
	defer startDrain()

	queues := map[string]int{}
	mux := asynq.NewServeMux()
	if handlers.Unit != nil {
		queues[expressQueue], queues[bulkQueue] = 3, 1
		for kind, name := range unitTypes {
			mux.HandleFunc(name, func(ctx context.Context, t *asynq.Task) error {
				task, err := decodeTask(t.Payload())
				if err != nil {
					return err
				}
				task.Kind = kind
				return handlers.Unit(ctx, task)
			})
		}
	}
	if handlers.Purge != nil {
		queues[maintenanceQueue] = 2
		mux.HandleFunc(purgeType, func(ctx context.Context, t *asynq.Task) error {
			job, err := decodePurge(t.Payload())
			if err != nil {
				return err
			}
			return handlers.Purge(ctx, job)
		})
	}
	pass := func(kind, queue string, handle func(context.Context, string) error) {
		if handle == nil {
			return
		}
		queues[queue] = 2
		mux.HandleFunc(kind, func(ctx context.Context, t *asynq.Task) error {
			var message sluicev1.UpkeepTask
			if err := proto.Unmarshal(t.Payload(), &message); err != nil {
				return fmt.Errorf("decode pass: %w", err)
			}
			return handle(ctx, message.GetKind())
		})
	}
	pass(recurringType, maintenanceQueue, handlers.Pass)
	pass(rescueType, rescueQueue, handlers.Rescue)

	servers := []*server{newServer(client, cfg, cfg.Concurrency, queues, idleCheck)}
	if cfg.Express > 0 && handlers.Unit != nil {
		servers = append(servers, newServer(client, cfg, cfg.Express, map[string]int{expressQueue: 1}, expressCheck))
	}
	var started []*server
	for _, server := range servers {
		if err = server.Start(server.limit(drain, mux)); err != nil {
			err = fmt.Errorf("start task server: %w", err)
			break
		}
		started = append(started, server)
	}
	if err == nil {
		<-ctx.Done()
	}
	drained := time.AfterFunc(cfg.Drain, startDrain)
	defer drained.Stop()
	most, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Drain+handBack)
	defer cancel()
	var stopping sync.WaitGroup
	for _, server := range started {
		stopping.Go(func() {
			server.Shutdown()
			server.await(most)
		})
	}
	stopping.Wait()
	return err
}

// server is a server of Asynq that counts its running handlers itself. Asynq stops counting a handler when it gives the
// task up: at the deadline, and when it could not renew its lease in Redis for 30 s.
type server struct {
	*asynq.Server
	running chan struct{} // has an element for each running handler
}

// errBusy puts a task back in the queue, for another server or for later.
var errBusy = errors.New("every slot has a handler whose task Asynq has given up")

// slotWait is how long a task waits for a slot before it is put back.
const slotWait = time.Second

// limit runs at most as many handlers at once as the server has slots. Their contexts end at the task's deadline and, with
// the cause ErrDraining, at the end of drain.
func (s *server) limit(drain context.Context, handler asynq.Handler) asynq.Handler {
	return asynq.HandlerFunc(func(task context.Context, t *asynq.Task) error {
		select {
		case s.running <- struct{}{}:
		case <-time.After(slotWait):
			return errBusy
		}
		defer func() { <-s.running }()
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(task))
		defer cancel(nil)
		defer context.AfterFunc(drain, func() { cancel(ErrDraining) })()
		if deadline, ok := task.Deadline(); ok { // EnqueueUnit and the others set one
			var stop context.CancelFunc
			ctx, stop = context.WithDeadline(ctx, deadline)
			defer stop()
		}
		return handler.ProcessTask(ctx, t)
	})
}

// await waits until no handler runs, or the context ends.
func (s *server) await(ctx context.Context) {
	for range cap(s.running) {
		select {
		case s.running <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

func newServer(
	client *redis.Client, cfg ServerConfig, concurrency int, queues map[string]int, idle time.Duration,
) *server {
	inner := asynq.NewServerFromRedisClient(client, asynq.Config{
		Concurrency:              concurrency,
		Queues:                   queues,
		TaskCheckInterval:        idle,
		DelayedTaskCheckInterval: 500 * time.Millisecond,
		ShutdownTimeout:          cfg.Drain + handBack,
		RetryDelayFunc:           func(n int, _ error, _ *asynq.Task) time.Duration { return export.Backoff(n + 1) },
		IsFailure:                func(err error) bool { return !errors.Is(err, errBusy) }, // only failures extend the delay
		Logger:                   asynqLogger{redisclient.NewLogLimit(cfg.Logger)},
		LogLevel:                 asynq.WarnLevel,
		ErrorHandler: asynq.ErrorHandlerFunc(func(_ context.Context, t *asynq.Task, err error) {
			switch {
			case errors.Is(err, errBusy):
			case errors.Is(err, asynq.ErrLeaseExpired):
				cfg.Logger.Warn("the lease of a task ended; its handler continues", "task", t.Type())
			default:
				cfg.Logger.Error("task failed", "task", t.Type(), "err", err)
			}
		}),
	})
	return &server{Server: inner, running: make(chan struct{}, concurrency)}
}

// asynqLogger passes Asynq's messages to slog. They name queues and servers, never payloads.
type asynqLogger struct{ limit *redisclient.LogLimit }

func (l asynqLogger) Debug(args ...any) { l.log(slog.LevelDebug, args) }
func (l asynqLogger) Info(args ...any)  { l.log(slog.LevelInfo, args) }
func (l asynqLogger) Warn(args ...any)  { l.log(slog.LevelWarn, args) }
func (l asynqLogger) Error(args ...any) { l.log(slog.LevelError, args) }
func (l asynqLogger) Fatal(args ...any) { l.log(slog.LevelError, args) }

// log limits messages that begin with the same words: the ids of tasks come later.
func (l asynqLogger) log(level slog.Level, args []any) {
	text := fmt.Sprint(args...)
	words := strings.SplitN(text, " ", 4)
	kind := strings.Join(words[:min(len(words), 3)], " ")
	l.limit.Log(context.Background(), level, kind, text, "part", "asynq")
}
