package queue

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
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
	// A drain ends a child of the task's context. If the context of Asynq ended, Asynq would count the task as
	// failed and stop waiting for its handler.
	drain, startDrain := context.WithCancel(context.WithoutCancel(ctx))
	defer startDrain()
	withDrain := func(ctx context.Context, handle func(context.Context) error) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(drain, func() { cancel(ErrDraining) })()
		return handle(ctx)
	}

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
				return withDrain(ctx, func(ctx context.Context) error { return handlers.Unit(ctx, task) })
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
			return withDrain(ctx, func(ctx context.Context) error { return handlers.Purge(ctx, job) })
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
			return withDrain(ctx, func(ctx context.Context) error { return handle(ctx, message.GetKind()) })
		})
	}
	pass(recurringType, maintenanceQueue, handlers.Pass)
	pass(rescueType, rescueQueue, handlers.Rescue)

	servers := []*asynq.Server{newServer(client, cfg, cfg.Concurrency, queues, idleCheck)}
	if cfg.Express > 0 && handlers.Unit != nil {
		servers = append(servers, newServer(client, cfg, cfg.Express, map[string]int{expressQueue: 1}, expressCheck))
	}
	var started []*asynq.Server
	for _, server := range servers {
		if err = server.Start(mux); err != nil {
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
	var stopping sync.WaitGroup
	for _, server := range started {
		stopping.Go(server.Shutdown)
	}
	stopping.Wait()
	return err
}

func newServer(
	client *redis.Client, cfg ServerConfig, concurrency int, queues map[string]int, idle time.Duration,
) *asynq.Server {
	return asynq.NewServerFromRedisClient(client, asynq.Config{
		Concurrency:              concurrency,
		Queues:                   queues,
		TaskCheckInterval:        idle,
		DelayedTaskCheckInterval: 500 * time.Millisecond,
		ShutdownTimeout:          cfg.Drain + handBack,
		RetryDelayFunc:           func(n int, _ error, _ *asynq.Task) time.Duration { return export.Backoff(n + 1) },
		Logger:                   asynqLogger{cfg.Logger},
		LogLevel:                 asynq.WarnLevel,
		ErrorHandler: asynq.ErrorHandlerFunc(func(_ context.Context, t *asynq.Task, err error) {
			cfg.Logger.Error("task failed", "task", t.Type(), "err", err)
		}),
	})
}

// asynqLogger passes Asynq's messages to slog. They name queues and servers, never payloads.
type asynqLogger struct{ log *slog.Logger }

func (l asynqLogger) Debug(args ...any) { l.log.Debug(fmt.Sprint(args...), "part", "asynq") }
func (l asynqLogger) Info(args ...any)  { l.log.Info(fmt.Sprint(args...), "part", "asynq") }
func (l asynqLogger) Warn(args ...any)  { l.log.Warn(fmt.Sprint(args...), "part", "asynq") }
func (l asynqLogger) Error(args ...any) { l.log.Error(fmt.Sprint(args...), "part", "asynq") }
func (l asynqLogger) Fatal(args ...any) { l.log.Error(fmt.Sprint(args...), "part", "asynq") }
