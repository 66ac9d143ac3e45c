package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	vegeta "github.com/tsenart/vegeta/v12/lib"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

const (
	fleetWorkers = 1000
	fleetJobs    = 10
	fleetUnit    = 10 * time.Second // duration of a unit
	fleetWindow  = 20 * time.Second // in which the costs are measured
	fleetCeiling = 5 * time.Second  // the same for the ceiling and the polls
	fleetCallers = 64               // of the ceiling
	fleetIdle    = 100              // workers that poll the queues
)

// fleetFigures are of workers that run units without work: each call is that of a real worker to the job store. They do
// not poll the queues; the polls of a few idle workers are measured apart.
type fleetFigures struct {
	Workers     int       `json:"workers"`
	Connections []float64 `json:"redis_connections"`
	Calls       []float64 `json:"calls_per_second"`
	Commands    []float64 `json:"redis_commands_per_second"` // with those in scripts
	CPU         []float64 `json:"redis_cpu"`                 // of a processor
	Heartbeat   []float64 `json:"heartbeat_p99_milliseconds"`
	Claim       []float64 `json:"claim_p99_milliseconds"`
	Commit      []float64 `json:"commit_p99_milliseconds"`
	Ceiling     []float64 `json:"ceiling_calls_per_second"` // of an empty script
	CeilingCPU  []float64 `json:"ceiling_redis_cpu"`
	Ratio       []float64 `json:"ratio_to_ceiling"`
	Polls       []float64 `json:"poll_commands_per_second"` // of one idle worker
	PollCPU     []float64 `json:"poll_redis_cpu"`           // the same, of a processor
}

// fleet has many simulated workers claim, keep alive and commit units. Each has a job store with connections of its own.
func (b *bench) fleet(ctx context.Context) (err error) {
	url := b.servers.newRedis()
	client, err := redisclient.Open(url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	f := &b.report.Fleet
	f.Workers = fleetWorkers
	for range b.options.rounds {
		if err := fleetCeilingOf(ctx, client, f); err != nil {
			return err
		}
		if err := fleetOnce(ctx, url, client, f); err != nil {
			return err
		}
		if err := fleetPolls(ctx, url, client, f); err != nil {
			return err
		}
		last := len(f.Calls) - 1
		f.Ratio = append(f.Ratio, f.Calls[last]/f.Ceiling[last])
	}
	return nil
}

// fleetCeilingOf measures how many calls of an empty script Redis answers.
func fleetCeilingOf(ctx context.Context, client *redis.Client, f *fleetFigures) error {
	script := redis.NewScript("return 1")
	before, err := tell(ctx, client)
	if err != nil {
		return err
	}
	var calls atomic.Int64
	began := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for range fleetCallers {
		group.Go(func() error {
			for time.Since(began) < fleetCeiling {
				if err := script.Run(groupCtx, client, nil).Err(); err != nil {
					return err
				}
				calls.Add(1)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	after, err := tell(ctx, client)
	f.Ceiling = append(f.Ceiling, float64(calls.Load())/took)
	f.CeilingCPU = append(f.CeilingCPU, (after.cpu-before.cpu)/took)
	return err
}

// fleetPolls measures how idle workers poll the queues.
func fleetPolls(ctx context.Context, url string, client *redis.Client, f *fleetFigures) (err error) {
	ctx, stop := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	defer func() {
		stop()
		err = errors.Join(err, group.Wait())
	}()
	for range fleetIdle {
		group.Go(func() error {
			return queue.Serve(ctx, queue.ServerConfig{
				URL: url, Concurrency: 3, Express: 2, Logger: slog.New(slog.DiscardHandler),
			}, queue.Handlers{Unit: func(context.Context, queue.Task) error { return nil }})
		})
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	before, err := tell(ctx, client)
	if err != nil {
		return err
	}
	if err := pause(ctx, fleetCeiling); err != nil {
		return err
	}
	after, err := tell(ctx, client)
	of := fleetIdle * fleetCeiling.Seconds()
	f.Polls = append(f.Polls, (after.commands-before.commands)/of)
	f.PollCPU = append(f.PollCPU, (after.cpu-before.cpu)/of)
	return err
}

// crew is the simulated workers.
type crew struct {
	url   string
	beat  time.Duration
	units chan export.Lease // in place of the queue
	calls atomic.Int64

	mu                     sync.Mutex
	claims, beats, commits vegeta.LatencyMetrics
}

// fleetOnce is one round.
func fleetOnce(ctx context.Context, url string, client *redis.Client, f *fleetFigures) (err error) {
	store, err := jobstore.Open(url, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	const perJob = fleetWorkers / fleetJobs * (2 + int((fleetWindow+fleetUnit)/fleetUnit))
	c := &crew{
		url: url, beat: envconfig.Defaults[pipeline.Config]().Heartbeat, units: make(chan export.Lease, fleetJobs*perJob),
	}
	for range fleetJobs {
		if err := c.begin(ctx, store, perJob); err != nil {
			return err
		}
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	group, working := errgroup.WithContext(working)
	for i := range fleetWorkers {
		group.Go(func() error { return c.work(working, c.beat*time.Duration(i)/fleetWorkers) })
	}
	err = c.measure(working, client, f)
	stop()
	return errors.Join(err, group.Wait())
}

// begin records a job with that many units and issues them.
func (c *crew) begin(ctx context.Context, store *jobstore.Store, units int) error {
	job := model{Job: export.Job{
		ID: export.NewJobID(), State: export.Scheduled, Created: time.Now(),
		Request: export.Request{GroupID: "all", Types: []string{"Patient"}},
	}}
	for i := range units {
		job.Units = append(job.Units, export.Unit{
			ID: export.UnitID(fmt.Sprintf("Patient-%05d", i)), Kind: export.KindExport, Type: "Patient", Bytes: 1 << 20,
		})
	}
	plan, err := job.create(ctx, store)
	if err != nil {
		return err
	}
	issued, err := job.run(ctx, store, plan)
	for _, lease := range issued {
		c.units <- lease
	}
	return err
}

// work is a worker. It begins after the delay, so that the workers do not act in step.
func (c *crew) work(ctx context.Context, delay time.Duration) (err error) {
	store, err := jobstore.Open(c.url, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := pause(ctx, delay); err != nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case issued := <-c.units:
			if err := c.run(ctx, store, issued); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// run runs a unit with heartbeats, as pipeline.Handle does.
func (c *crew) run(ctx context.Context, store *jobstore.Store, issued export.Lease) (err error) {
	var lease export.Lease
	err = c.timed(&c.claims, func() (err error) {
		lease, err = store.Claim(ctx, issued.Job, issued.Unit.ID, issued.Unit.Kind, issued.Fence, rand.Text())
		return err
	})
	if err != nil {
		return err
	}
	c.calls.Add(1)
	if _, err := store.Job(ctx, lease.Job); err != nil {
		return err
	}
	ticker := time.NewTicker(c.beat)
	defer ticker.Stop()
	for end := time.After(fleetUnit); end != nil; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			if err := c.timed(&c.beats, func() error { return store.Heartbeat(ctx, lease) }); err != nil {
				return err
			}
		case <-end:
			end = nil
		}
	}
	name := export.FileName(lease.Unit.ID, lease.Fence, lease.Unit.Type, 0)
	file := export.File{Name: name, Type: lease.Unit.Type, Key: export.FileKey(lease.Job, lease.Unit.Type, name)}
	err = c.timed(&c.commits, func() error {
		return store.Commit(ctx, lease, jobstore.Commit{Result: export.Result{Files: []export.File{file}}})
	})
	if err != nil {
		return err
	}
	c.calls.Add(1)
	_, err = store.Issue(ctx, lease.Job, 2*fleetWorkers) // there are none left
	return err
}

// timed adds the duration of a call.
func (c *crew) timed(to *vegeta.LatencyMetrics, call func() error) error {
	c.calls.Add(1)
	began := time.Now()
	if err := call(); err != nil {
		return err
	}
	took := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	to.Add(took)
	return nil
}

// measure measures the window that begins when all workers work.
func (c *crew) measure(ctx context.Context, client *redis.Client, f *fleetFigures) error {
	if err := pause(ctx, c.beat+time.Second); err != nil {
		return err
	}
	before, err := tell(ctx, client)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.claims, c.beats, c.commits = vegeta.LatencyMetrics{}, vegeta.LatencyMetrics{}, vegeta.LatencyMetrics{}
	c.mu.Unlock()
	c.calls.Store(0)
	if err := pause(ctx, fleetWindow); err != nil {
		return err
	}
	calls := float64(c.calls.Load())
	after, err := tell(ctx, client)
	if err != nil {
		return err
	}
	info, err := client.InfoMap(ctx, "clients").Result()
	if err != nil {
		return err
	}
	connections, err := strconv.ParseFloat(info["Clients"]["connected_clients"], 64)
	if err != nil {
		return err
	}
	seconds := fleetWindow.Seconds()
	f.Connections = append(f.Connections, connections)
	f.Calls, f.Commands = append(f.Calls, calls/seconds), append(f.Commands, (after.commands-before.commands)/seconds)
	f.CPU = append(f.CPU, (after.cpu-before.cpu)/seconds)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, figure := range []struct {
		from vegeta.LatencyMetrics
		to   *[]float64
	}{{c.beats, &f.Heartbeat}, {c.claims, &f.Claim}, {c.commits, &f.Commit}} {
		*figure.to = append(*figure.to, milliseconds(figure.from.Quantile(0.99)))
	}
	return nil
}
