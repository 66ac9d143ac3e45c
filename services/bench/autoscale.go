package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"reflect"
	"slices"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
	"github.com/sluice-fhir/sluice/services/bench/autoscale"
)

// The simulation of autoscaling. Everything is real but the cluster: services, stores, signals and formula. Time goes ten
// times as fast for the autoscaler and for how long a worker may drain, and the store answers a large file late, so that
// some workers on one machine are to a unit what they would be on many.
const (
	autoscalePatients = 2560             // five chunks of a cohort
	faster            = 10               // a second here is ten of the autoscaler's
	slowStore         = 5 * time.Second  // for each file larger than
	slowFrom          = 1 << 20          // bytes
	autoscaleLongest  = 12 * time.Minute // of all of it, or something is stuck
	autoscaleSeed     = 7                // of who is stopped
	autoscaleUnit     = 17 << 20         // SLUICE_UNIT_BYTES: just not short
	autoscaleFile     = 26 << 20         // SLUICE_FILE_BYTES: some units write one file, and some four
	tail              = 30 * time.Second // after the last worker has gone
)

// waves are the jobs, by the autoscaler's clock.
var waves = []struct {
	at           time.Duration
	large, small int
}{
	{30 * time.Second, 0, 1}, // none is there: it waits for a worker
	{90 * time.Second, 1, 0},
	{7 * time.Minute, 3, 4},
	{12 * time.Minute, 0, 1},
	{14 * time.Minute, 0, 1},
	{16 * time.Minute, 1, 1},
}

type autoscaleFigures struct {
	Jobs        []autoscaleJob    `json:"jobs"`
	Samples     []autoscaleSample `json:"samples"`
	Most        int               `json:"workers_at_most"`
	Started     int               `json:"workers_started"`
	Stopped     int               `json:"workers_stopped"`
	StoppedBusy int               `json:"workers_stopped_at_work"`
	Units       int               `json:"units"`
	Executions  int               `json:"executions"`
	HandedBack  int               `json:"handed_back"`
	Lines       int64             `json:"lines_compared"`
	Faster      int               `json:"times_faster"`
	Drain       float64           `json:"drain_seconds"` // by the autoscaler's clock
}

type autoscaleJob struct {
	Group string  `json:"group"`
	Begun float64 `json:"begun_seconds"` // by the autoscaler's clock
	Took  float64 `json:"took_seconds"`
}

type autoscaleSample struct {
	At      float64 `json:"at_seconds"` // by the autoscaler's clock
	Workers int     `json:"workers"`    // wanted
	Alive   int     `json:"alive"`      // with those that drain
	Pending int     `json:"pending"`
	Active  int     `json:"active"`
	Value   float64 `json:"value"` // of the formula
}

// fleet is what the supervisor looks after.
type fleet struct {
	d        *deployment
	object   *autoscale.Object
	scaler   autoscale.Scaler
	redis    *redis.Client
	settings []string // of the workers
	workers  []*process
	started  []*process
	choose   *rand.Rand
	began    time.Time
	values   map[string]float64
	stopped  int
	busy     int // of the stopped, those that had a unit
}

func (b *bench) autoscale(ctx context.Context) (err error) {
	object, err := autoscale.Read(b.scaledObject)
	if err != nil {
		return err
	}
	object.Spec.Min = 0 // so that the way from and to none is seen too
	p, err := b.population(ctx, autoscalePatients)
	if err != nil {
		return err
	}
	d, err := b.deploy(ctx, p, 0)
	if err != nil {
		return err
	}
	defer d.stop()
	want, err := d.undisturbed(ctx)
	if err != nil {
		return err
	}
	store := slowly(b.servers.s3)
	defer store.Close()
	options, err := redis.ParseURL(d.redis)
	if err != nil {
		return err
	}
	f := &fleet{
		d: d, object: object, scaler: autoscale.Scaler{Object: object}, redis: redis.NewClient(options),
		choose: rand.New(rand.NewPCG(autoscaleSeed, autoscaleSeed)), //nolint:gosec // it is to be repeated
		settings: append(workerUnits(),
			"SLUICE_S3_ENDPOINT="+store.URL, fmt.Sprintf("SLUICE_WORKER_DRAIN=%s", b.drain/faster)),
	}
	defer func() { err = errors.Join(err, f.redis.Close()) }()
	figures := &b.report.Autoscale
	figures.Faster, figures.Drain = faster, b.drain.Seconds()
	jobs, err := f.run(ctx, figures)
	if err != nil {
		return err
	}
	for _, worker := range f.started {
		worker.stop()
	}
	if err := f.account(figures); err != nil {
		return err
	}
	for i, job := range jobs {
		got, err := d.fingerprints(ctx, job)
		if err != nil {
			return err
		}
		group := figures.Jobs[i].Group
		if !reflect.DeepEqual(got, want[group]) {
			return fmt.Errorf("job %d of group %s: the lines are not those of an undisturbed export", i, group)
		}
		for _, lines := range got {
			figures.Lines += lines.count
		}
	}
	if b.chart == "" {
		return nil
	}
	return drawAutoscale(b.chart, figures)
}

// workerUnits are settings that make long units of a population of this size.
func workerUnits() []string {
	return []string{
		"SLUICE_WORKER_CONCURRENCY=3", "SLUICE_WORKER_EXPRESS=2", fmt.Sprintf("SLUICE_UNIT_BYTES=%d", autoscaleUnit),
		fmt.Sprintf("SLUICE_FILE_BYTES=%d", autoscaleFile),
	}
}

// slowly is the object store, which answers late when it was given a large file.
func slowly(store *url.URL) *httptest.Server {
	target := &url.URL{Scheme: store.Scheme, Host: store.Host}
	return httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(reply *http.Response) error {
			if r := reply.Request; r.Method == http.MethodPut && r.ContentLength > slowFrom {
				select {
				case <-time.After(slowStore):
				case <-r.Context().Done():
				}
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	})
}

// undisturbed returns what each group holds, as two steady workers export it.
func (d *deployment) undisturbed(ctx context.Context) (map[string]map[string]lineSet, error) {
	var workers []*process
	for range 2 {
		worker, err := d.startWorker(workerUnits()...)
		if err != nil {
			return nil, err
		}
		if err := worker.waitReady(ctx); err != nil {
			return nil, err
		}
		workers = append(workers, worker)
	}
	want := map[string]map[string]lineSet{}
	for _, group := range []string{"all", "ten"} {
		job, _, err := d.export(ctx, group)
		if err != nil {
			return nil, err
		}
		if want[group], err = d.fingerprints(ctx, job); err != nil {
			return nil, err
		}
		if err := d.client.Cancel(ctx, job); err != nil {
			return nil, err
		}
	}
	for _, worker := range workers {
		worker.stop()
	}
	return want, nil
}

// lineSet stands for a set of lines: how many, and the sum of their hashes, whatever their order. A line that is there
// twice changes it.
type lineSet struct {
	count     int64
	low, high uint64
}

// fingerprints downloads what the job's manifest lists, checks each file's count, and keeps none of it.
func (d *deployment) fingerprints(ctx context.Context, job bulkclient.Job) (map[string]lineSet, error) {
	manifest, err := d.client.Await(ctx, job)
	if err != nil {
		return nil, err
	}
	sets := map[string]lineSet{}
	// The errors are part of it: how much was withheld is the same each time.
	for _, item := range slices.Concat(manifest.Output, manifest.Error) {
		resp, err := d.get(ctx, item.URL, "")
		if err != nil {
			return nil, err
		}
		set := sets[item.Type]
		before := set.count
		lines := bufio.NewReaderSize(resp.Body, 1<<20)
		for err == nil {
			var line []byte
			if line, err = lines.ReadSlice('\n'); len(line) > 0 {
				hash := xxh3.Hash128(line)
				set.count, set.low, set.high = set.count+1, set.low+hash.Lo, set.high+hash.Hi
			}
		}
		sets[item.Type] = set
		if closed := resp.Body.Close(); !errors.Is(err, io.EOF) || closed != nil || resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("read a file: %s: %w", resp.Status, errors.Join(err, closed))
		}
		if item.Count != nil && *item.Count != set.count-before {
			return nil, fmt.Errorf("a file of %s has %d lines, its manifest says %d", item.Type, set.count-before, *item.Count)
		}
	}
	return sets, nil
}

// now is the autoscaler's clock: seconds since the beginning, and a time for its rules.
func (f *fleet) now() (time.Duration, time.Time) {
	passed := time.Since(f.began) * faster
	return passed, f.began.Add(passed)
}

// run kicks jobs off and scales until all are done and the last worker has gone. It returns the jobs, in the order of
// the figures.
func (f *fleet) run(ctx context.Context, figures *autoscaleFigures) ([]bulkclient.Job, error) {
	ctx, cancel := context.WithTimeout(ctx, autoscaleLongest)
	defer cancel()
	f.began = time.Now()
	polling := time.NewTicker(time.Duration(f.object.Spec.Polling) * time.Second / faster)
	defer polling.Stop()
	var jobs []bulkclient.Job
	var gone time.Duration // since when there is nothing left
	wave, synced := 0, time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the autoscaling did not come to an end: %w", ctx.Err())
		case <-polling.C:
		}
		passed, at := f.now()
		for ; wave < len(waves) && passed >= waves[wave].at; wave++ {
			for n := range waves[wave].large + waves[wave].small {
				group := "all"
				if n >= waves[wave].large {
					group = "ten"
				}
				job, err := f.d.client.KickOff(ctx, bulkclient.Request{Group: group})
				if err != nil {
					return nil, err
				}
				jobs = append(jobs, job)
				figures.Jobs = append(figures.Jobs, autoscaleJob{Group: group, Begun: passed.Seconds()})
			}
		}
		open := wave < len(waves)
		for i, job := range jobs {
			if figures.Jobs[i].Took > 0 {
				continue
			}
			complete, _, err := f.d.poll(ctx, job)
			if err != nil {
				return nil, err
			}
			if complete {
				figures.Jobs[i].Took = passed.Seconds() - figures.Jobs[i].Begun
			} else {
				open = true
			}
		}
		if err := f.look(ctx); err != nil {
			return nil, err
		}
		value, err := f.object.Value(f.values)
		if err != nil {
			return nil, err
		}
		want := f.scaler.Activate(at, len(f.workers), value)
		if passed-synced >= autoscale.SyncPeriod {
			want = f.scaler.Desired(at, want, value)
			synced = passed
		}
		if err := f.scaleTo(want); err != nil {
			return nil, err
		}
		alive := 0
		for _, worker := range f.started {
			select {
			case <-worker.done:
			default:
				alive++
			}
		}
		figures.Most = max(figures.Most, alive)
		figures.Samples = append(figures.Samples, autoscaleSample{
			At: passed.Seconds(), Workers: len(f.workers), Alive: alive, Value: value,
			Pending: int(f.values["bulk_pending"] + f.values["steering_pending"]),
			Active:  int(f.values["bulk_active"] + f.values["steering_active"]),
		})
		if open || len(f.workers) > 0 || alive > 0 {
			gone = passed
		}
		if passed-gone > tail {
			return jobs, nil
		}
	}
}

// look asks for the value of each trigger where KEDA would ask.
func (f *fleet) look(ctx context.Context) error {
	f.values = map[string]float64{}
	var scale map[string]any
	for _, trigger := range f.object.Spec.Triggers {
		switch trigger.Type {
		case "redis": // KEDA takes the length of what it finds
			key := trigger.Metadata["listName"]
			kind, err := f.redis.Type(ctx, key).Result()
			if err != nil {
				return err
			}
			count := f.redis.LLen(ctx, key)
			if kind == "zset" {
				count = f.redis.ZCard(ctx, key)
			}
			n, err := count.Result()
			if err != nil {
				return err
			}
			f.values[trigger.Name] = float64(n)
		case "metrics-api":
			place, err := url.Parse(trigger.Metadata["url"])
			if err != nil {
				return err
			}
			place.Host = f.d.scheduler.private
			if scale == nil {
				if scale, err = askJSON(ctx, place.String()); err != nil {
					return err
				}
			}
			value, isNumber := scale[trigger.Metadata["valueLocation"]].(float64)
			if !isNumber {
				return fmt.Errorf("%s tells no %s", place.Path, trigger.Metadata["valueLocation"])
			}
			if trigger.Name == "oldest_waiting" {
				value *= faster
			}
			f.values[trigger.Name] = value
		default:
			return fmt.Errorf("trigger type %q is not understood", trigger.Type)
		}
	}
	return nil
}

func askJSON(ctx context.Context, url string) (answer map[string]any, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

// scaleTo starts workers, or tells some to stop: any, as a cluster knows nothing of units.
func (f *fleet) scaleTo(want int) error {
	for len(f.workers) < want {
		worker, err := f.d.startWorker(f.settings...)
		if err != nil {
			return err
		}
		f.workers = append(f.workers, worker)
		f.started = append(f.started, worker)
	}
	for len(f.workers) > want {
		i := f.choose.IntN(len(f.workers))
		victim := f.workers[i]
		f.workers = append(f.workers[:i], f.workers[i+1:]...)
		f.stopped++
		if victim.atWork() {
			f.busy++
		}
		if err := victim.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop a worker: %w", err)
		}
	}
	return nil
}

// atWork reports whether the worker has a unit, as far as its log says.
func (p *process) atWork() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	settled := 0
	for _, n := range p.settled {
		settled += n
	}
	return len(p.claimed) > settled
}

// account counts what the workers' logs say: a unit is executed once, and once more whenever it was handed back.
func (f *fleet) account(figures *autoscaleFigures) error {
	figures.Started, figures.Stopped, figures.StoppedBusy = len(f.started), f.stopped, f.busy
	outcomes := map[string]int{}
	for _, worker := range f.started {
		figures.Executions += len(worker.claimed)
		for outcome, n := range worker.settled {
			outcomes[outcome] += n
		}
	}
	figures.Units, figures.HandedBack = outcomes["done"], outcomes["handed_back"]
	maps.DeleteFunc(outcomes, func(outcome string, _ int) bool { return outcome == "done" || outcome == "handed_back" })
	if len(outcomes) != 0 || figures.Executions != figures.Units+figures.HandedBack {
		return fmt.Errorf("%d executions of %d units, %d handed back, others: %v",
			figures.Executions, figures.Units, figures.HandedBack, outcomes)
	}
	return nil
}
