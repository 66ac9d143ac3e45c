package maintenance

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// figures returns gauges and counters by name and labels, such as "sluice_scheduler_jobs{planning}".
func (w *world) figures() map[string]float64 {
	w.t.Helper()
	families, err := w.Registry.(prometheus.Gatherer).Gather()
	w.must(err)
	all := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for i, label := range metric.GetLabel() {
				name += map[bool]string{true: "{", false: ","}[i == 0] + label.GetValue()
			}
			if len(metric.GetLabel()) > 0 {
				name += "}"
			}
			all[name] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	return all
}

func (w *world) want(step string, want map[string]float64) {
	w.t.Helper()
	got := w.figures()
	for name, value := range want {
		if have, there := got[name]; !there || have != value {
			w.t.Errorf("%s: %s is %v (exists: %v), want %v", step, name, have, there, value)
		}
	}
}

func TestASurveyCountsJobsByState(t *testing.T) {
	w := newWorld(t)
	began := w.Now()
	for _, state := range []export.State{
		export.Scheduled, export.Completed, export.Completed, export.Failed, export.Cancelled,
	} {
		w.job(state)
	}
	planning := w.job(export.Scheduled)
	w.claim(planning, export.PlanUnit, export.KindPlan)
	w.must(w.Queue.EnqueueUnit(t.Context(), queue.Task{
		Kind: export.KindPlan, Job: planning, Unit: export.PlanUnit, Fence: 1,
	}))
	w.set(began.Add(90 * time.Second))
	w.must(w.surveyOnce(t.Context(), &survey{gauges: w.metrics.gauges, idle: true}))
	w.want("survey", map[string]float64{
		"sluice_scheduler_jobs{scheduled}": 1, "sluice_scheduler_jobs{planning}": 1, "sluice_scheduler_jobs{running}": 0,
		"sluice_scheduler_jobs{sealing}": 0, "sluice_scheduler_jobs{completed}": 2, "sluice_scheduler_jobs{failed}": 1,
		"sluice_scheduler_jobs{cancelled}": 1, "sluice_scheduler_jobs{expired}": 0, "sluice_scheduler_jobs{uncounted}": 0,
		"sluice_scheduler_open_units": 2, "sluice_scheduler_oldest_job_seconds": 90,
		"sluice_scheduler_purge_lag_seconds":             90, // of the cancelled one
		"sluice_scheduler_queue_tasks{steering,pending}": 1, "sluice_scheduler_queue_tasks{bulk,pending}": 0,
		"sluice_scheduler_workers": 0,
	})
}

// The stall is measured over all jobs: a closed unit ends it, a new or a failed job does not.
func TestASurveyTellsAStandstill(t *testing.T) {
	w := newWorld(t)
	s := &survey{gauges: w.metrics.gauges, idle: true}
	now := w.Now()
	look := func(step string, after time.Duration, stalled, slowest float64) {
		t.Helper()
		now = now.Add(after)
		w.set(now)
		w.must(w.surveyOnce(t.Context(), s))
		w.want(step, map[string]float64{
			"sluice_scheduler_stalled_seconds": stalled, "sluice_scheduler_stalled_job_seconds": slowest,
		})
	}
	look("idle", time.Hour, 0, 0)
	first := w.job(export.Scheduled)
	look("a job is there", time.Minute, 0, 0)
	look("nothing is done", time.Minute, 60, 60)
	second := w.job(export.Scheduled)
	look("another kick-off", time.Minute, 120, 120)
	w.must(w.Jobs.Cancel(t.Context(), second, w.Now()))
	look("its owner gives up", time.Minute, 180, 180)
	third := w.job(export.Scheduled)
	look("and tries again", time.Minute, 240, 240)
	w.must(w.Jobs.FailJob(t.Context(), third, "too old", w.Now(), w.Now().Add(week)))
	look("a job fails", time.Minute, 300, 300)

	lease := w.claim(first, export.PlanUnit, export.KindPlan)
	look("a plan is begun", time.Minute, 0, 0)
	other := w.job(export.Scheduled)
	look("a long plan", time.Minute, 60, 60)
	unit := export.Unit{ID: "Patient-00000", Kind: export.KindExport, Type: "Patient"}
	seal := export.Unit{ID: export.SealUnit, Kind: export.KindSeal}
	w.must(w.Jobs.Stage(t.Context(), lease, []export.Unit{unit}))
	w.must(w.Jobs.Commit(t.Context(), lease, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: w.Now()}, Next: seal}))
	look("the plan is done", time.Minute, 0, 60) // the other job waits on
	_, err := w.Jobs.Issue(t.Context(), first, 10)
	w.must(err)
	look("its unit runs", time.Minute, 60, 120)
	w.must(w.Jobs.Commit(t.Context(), w.claim(first, unit.ID, unit.Kind), jobstore.Commit{Next: seal}))
	_, err = w.Jobs.Issue(t.Context(), first, 10)
	w.must(err)
	w.must(w.Jobs.Commit(t.Context(), w.claim(first, export.SealUnit, export.KindSeal), jobstore.Commit{
		Seal: &jobstore.Seal{Manifest: "m", Finished: w.Now(), Expires: w.Now().Add(week)},
	}))
	look("it is completed between two looks", time.Minute, 0, 180)
	w.must(w.Jobs.Cancel(t.Context(), other, w.Now()))
	look("idle again", time.Hour, 0, 0)
}

// A failed survey leaves the gauges unchanged; the time of the last pass shows their age.
func TestASurveyThatFails(t *testing.T) {
	w := newWorld(t)
	w.job(export.Scheduled)
	s := &survey{gauges: w.metrics.gauges, idle: true}
	w.must(w.surveyOnce(t.Context(), s))
	w.passed(passSurvey, nil)
	last := w.figures()["sluice_scheduler_last_pass_timestamp_seconds{survey}"]
	w.set(w.Now().Add(time.Minute))
	w.must(w.Jobs.Close())
	err := w.surveyOnce(t.Context(), s)
	if err == nil {
		t.Fatal("a survey without a store does not fail")
	}
	w.passed(passSurvey, err)
	w.want("failed", map[string]float64{
		"sluice_scheduler_jobs{scheduled}":                     1,
		"sluice_scheduler_passes_total{survey,failed}":         1,
		"sluice_scheduler_passes_total{survey,done}":           1,
		"sluice_scheduler_last_pass_timestamp_seconds{survey}": last,
	})
}

// A survey reads a bounded number of jobs, counts the others as uncounted, and says so once.
func TestASurveyIsBounded(t *testing.T) {
	w := newWorld(t)
	var log strings.Builder
	w.Logger = slog.New(slog.NewTextHandler(&log, nil))
	var due []redis.Z
	for n := range surveyMost + 3 {
		due = append(due, redis.Z{Score: float64(n), Member: string(export.NewJobID())})
	}
	w.must(w.redis.ZAdd(t.Context(), "sluice:jobs:due", due...).Err())
	s := &survey{gauges: w.metrics.gauges, idle: true}
	for range 2 {
		w.must(w.surveyOnce(t.Context(), s))
		w.want("bounded", map[string]float64{"sluice_scheduler_jobs{uncounted}": 3})
	}
	if said := strings.Count(log.String(), "more jobs than a survey reads"); said != 1 {
		t.Fatalf("said %d times:\n%s", said, &log)
	}
}

func TestPassesAreCounted(t *testing.T) {
	w := newWorld(t)
	w.must(w.Pass(t.Context(), passExpire))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Pass(ended, passExpire); err == nil {
		t.Fatal("a pass without Redis does not fail")
	}
	w.want("passes", map[string]float64{
		"sluice_scheduler_passes_total{expire,done}": 1, "sluice_scheduler_passes_total{expire,failed}": 1,
		"sluice_scheduler_passes_total{rescue,done}": 0,
	})
}

// The span of a rescue links to the next attempt.
func TestARescueIsTraced(t *testing.T) {
	w := newWorld(t)
	collector := testenv.NewCollector(t)
	tracing, err := telemetry.OpenTracing(t.Context(), telemetry.TracingConfig{
		Endpoint: collector.URL + "/v1/traces", Ratio: 1, Service: "scheduler", Logger: w.Logger,
		Registry: prometheus.NewRegistry(),
	})
	w.must(err)
	w.Tracing = tracing
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	id := export.NewJobID()
	_, err = w.Jobs.Create(t.Context(), export.Job{
		ID: id, State: export.Scheduled, Created: w.Now(), Trace: parent,
		Request: export.Request{GroupID: "g", Types: []string{"Patient"}},
	}, export.FirstUnit(), jobstore.Admission{Limit: 100})
	w.must(err)
	lease := w.claim(id, export.PlanUnit, export.KindPlan)
	w.set(w.Now().Add(time.Minute))
	w.must(w.Rescue(t.Context()))
	tracing.Close(t.Context())
	spans := collector.Spans()
	if len(spans) != 1 || spans[0].GetName() != "rescue" || spans[0].Attributes["sluice.unit"] != "plan" ||
		hex.EncodeToString(spans[0].TraceId)+"-"+hex.EncodeToString(spans[0].ParentSpanId) != parent[3:52] {
		t.Fatalf("spans: %v", spans)
	}
	task := fmt.Sprintf("asynq:{steering}:t:%s:plan:%d", id, lease.Fence+1)
	payload, err := w.redis.HGet(t.Context(), task, "msg").Result()
	w.must(err)
	if !strings.Contains(payload, hex.EncodeToString(spans[0].SpanId)) {
		t.Error("the task has no traceparent")
	}
}
