package monitoringcheck

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/promqltest"
)

// well is a deployment in which all is well: two schedulers, of which one does the duties, two workers of which one has
// just come, jobs that come and go. A sample a minute, for two hours.
const well = `
load 1m
  sluice_scheduler_stalled_seconds{instance="s1"} 0 15 40 0 0 120 600 30x120
  sluice_scheduler_stalled_seconds{instance="s2"} 0 15 40 0 0 120 600 30x120
  sluice_scheduler_stalled_job_seconds{instance="s1"} 0+1x120
  sluice_scheduler_open_units{instance="s1"} 5x120
  sluice_scheduler_last_pass_timestamp_seconds{instance="s1",duty="expire"} 0+60x120
  sluice_scheduler_last_pass_timestamp_seconds{instance="s1",duty="rescue"} 0+60x120
  sluice_scheduler_last_pass_timestamp_seconds{instance="s1",duty="survey"} 0+60x120
  sluice_scheduler_last_pass_timestamp_seconds{instance="s1",duty="sweep"} 0x120
  sluice_scheduler_last_pass_timestamp_seconds{instance="s2",duty="expire"} 0x120
  sluice_scheduler_last_pass_timestamp_seconds{instance="s2",duty="rescue"} 0x120
  sluice_scheduler_last_pass_timestamp_seconds{instance="s2",duty="survey"} 0+60x120
  sluice_scheduler_purge_lag_seconds{instance="s1"} 20x120
  sluice_scheduler_queue_oldest_seconds{instance="s1",queue="bulk"} 30x120
  sluice_scheduler_rescued_units_total{instance="s1"} 0x30 1x90
  sluice_scheduler_failed_jobs_total{instance="s1"} 0x120
  sluice_worker_last_commit_timestamp_seconds{instance="w1"} 0+60x120
  sluice_worker_units_total{instance="w1",kind="export",type="Patient",outcome="done"} 0+10x120
  sluice_worker_fence_losses_total{instance="w1"} 0x40 2x80
  sluice_worker_guard_refusals_total{instance="w1"} 0x120
  sluice_worker_given_up_units_total{instance="w1"} 0x120
  sluice_worker_jobs_total{instance="w1",outcome="completed"} 0+1x120
  sluice_worker_jobs_total{instance="w1",outcome="failed"} 0x120
  sluice_worker_guard_refusals_total{instance="w2"} _x60 0x60
  sluice_worker_jobs_total{instance="w2",outcome="failed"} _x60 0x60
  sluice_api_requests_total{instance="a1",route="/fhir/exports/:job",method="GET",code="200"} 0+100x120
  sluice_api_requests_total{instance="a1",route="/fhir/exports/:job",method="GET",code="503"} 0+1x120
  sluice_api_requests_total{instance="a1",route="/readyz",method="GET",code="503"} 0+100x120
  sluice_dependency_seconds_count{instance="w1",dependency="redis",operation="script"} 0+1000x120
  sluice_dependency_errors_total{instance="w1",dependency="redis",operation="script"} 0+1x120
  sluice_dependency_seconds_bucket{instance="w1",dependency="redis",operation="script",le="0.01"} 0+995x120
  sluice_dependency_seconds_bucket{instance="w1",dependency="redis",operation="script",le="5"} 0+999x120
  sluice_dependency_seconds_bucket{instance="w1",dependency="redis",operation="script",le="+Inf"} 0+1000x120
  sluice_dependency_seconds_bucket{instance="w1",dependency="source",operation="stream",le="0.01"} 0x120
  sluice_dependency_seconds_bucket{instance="w1",dependency="source",operation="stream",le="+Inf"} 0+10x120
  sluice_audit_failures_total{instance="a1"} 0x120
  sluice_tls_certificate_expiry_seconds{instance="a1",listener="public"} 2000000-60x120
  sluice_tls_certificate_reload_failures_total{instance="a1",listener="public"} 0x120
  sluice_trace_export_failures_total{instance="a1"} 0x120
`

// troubles are, for each alert, series of deployments in which it has to fire at the second hour, and in which it must not.
var troubles = map[string]struct{ fires, quiet map[string]string }{
	"SluiceNoForwardProgress": {
		fires: map[string]string{
			"all workers are gone": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0x60 0+60x60
				sluice_scheduler_open_units{instance="s1"} 5x120`,
			"workers are there and nothing commits": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0x60 0+60x60
				sluice_worker_last_commit_timestamp_seconds{instance="w1"} 0+60x60 3600x60
				sluice_worker_units_total{instance="w1",kind="export",type="Patient",outcome="waiting"} 0+10x120`,
			"one of two schedulers was restarted": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0x60 0+60x60
				sluice_scheduler_stalled_seconds{instance="s2"} _x115 0+60x5`,
			"the only scheduler is restarted every five minutes": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0 60 120 180 240 0 60 120 180 240 0x110
				sluice_scheduler_open_units{instance="s1"} 5x120
				sluice_worker_last_commit_timestamp_seconds{instance="w1"} 0+60x60 3600x60`,
		},
		quiet: map[string]string{
			"idle for long": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0x120
				sluice_scheduler_open_units{instance="s1"} 0x120
				sluice_worker_last_commit_timestamp_seconds{instance="w1"} 60x120`,
			"idle, and scaled to no worker": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0x120
				sluice_scheduler_open_units{instance="s1"} 0x120`,
			"a kick-off after hours": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0x115 0+60x5
				sluice_scheduler_open_units{instance="s1"} 0x115 1x5
				sluice_worker_last_commit_timestamp_seconds{instance="w1"} 60x120`,
			"long units": `
				sluice_scheduler_stalled_seconds{instance="s1"} 0x110 0+60x10
				sluice_scheduler_open_units{instance="s1"} 5x120
				sluice_worker_last_commit_timestamp_seconds{instance="w1"} 0+60x110 6600x10`,
		},
	},
	"SluiceJobStuck": {fires: map[string]string{
		"one waits for more than two hours": `sluice_scheduler_stalled_job_seconds{instance="s1"} 3600+60x120`,
	}},
	"SluiceNoScheduler": {fires: map[string]string{
		"none is there":            `sluice_worker_busy_units{instance="w1"} 1x120`,
		"the last one has stopped": `sluice_scheduler_stalled_seconds{instance="s1"} 0x60`,
	}},
	"SluiceTicksMissing": {
		fires: map[string]string{
			"rescue fails in all": `
				sluice_scheduler_last_pass_timestamp_seconds{instance="s1",duty="rescue"} 0+60x60 3600x60
				sluice_scheduler_last_pass_timestamp_seconds{instance="s2",duty="rescue"} 0x120`,
		},
		quiet: map[string]string{
			"the sweep is hourly": `sluice_scheduler_last_pass_timestamp_seconds{instance="s1",duty="sweep"} 0+60x60 3600x60`,
		},
	},
	"SluicePurgeLag": {fires: map[string]string{
		"purges fail": `sluice_scheduler_purge_lag_seconds{instance="s1"} 0+60x120`,
	}},
	"SluiceQueueAge": {fires: map[string]string{
		"there are too few workers": `sluice_scheduler_queue_oldest_seconds{instance="s1",queue="bulk"} 0+10x120`,
	}},
	"SluiceGuardRefusals": {
		fires: map[string]string{
			"one line": `sluice_worker_guard_refusals_total{instance="w1"} 0x115 1x5`,
			"of a worker that has just come": `
				sluice_worker_guard_refusals_total{instance="w1"} 0x120
				sluice_worker_guard_refusals_total{instance="w2"} _x115 1x5`,
		},
		quiet: map[string]string{
			"one line, long ago": `sluice_worker_guard_refusals_total{instance="w1"} 0x10 1x110`,
		},
	},
	"SluiceFenceLosses": {
		fires: map[string]string{
			"workers are taken for dead": `
				sluice_worker_units_total{instance="w1",kind="export",type="Patient",outcome="done"} 0+10x120
				sluice_scheduler_rescued_units_total{instance="s1"} 0+2x120
				sluice_worker_fence_losses_total{instance="w1"} 0+2x120`,
		},
		quiet: map[string]string{
			"a worker was lost": `
				sluice_worker_units_total{instance="w1",kind="export",type="Patient",outcome="done"} 0x120
				sluice_scheduler_rescued_units_total{instance="s1"} 0x110 3x10
				sluice_worker_fence_losses_total{instance="w1"} 0x110 3x10`,
		},
	},
	"SluiceJobsFail": {fires: map[string]string{
		"a plan cannot be made": `sluice_worker_jobs_total{instance="w1",outcome="failed"} 0x115 1x5`,
		"it took too long":      `sluice_scheduler_failed_jobs_total{instance="s1"} 0x115 1x5`,
	}},
	"SluiceUnitsGivenUp": {fires: map[string]string{
		"one unit": `sluice_worker_given_up_units_total{instance="w1"} 0x115 1x5`,
	}},
	"SluiceAPIErrors": {fires: map[string]string{
		"Redis is down": `
			sluice_api_requests_total{instance="a1",route="/fhir/exports/:job",method="GET",code="200"} 0+10x60 600x60
			sluice_api_requests_total{instance="a1",route="/fhir/exports/:job",method="GET",code="503"} 0x60 0+10x60`,
		"answers are cut": `
			sluice_api_requests_total{instance="a1",route="/f",method="GET",code="200"} 0+10x120
			sluice_api_requests_total{instance="a1",route="/f",method="GET",code="cut"} 0+1x120`,
	}},
	"SluiceDependencyErrors": {fires: map[string]string{
		"the object store answers 503": `
			sluice_dependency_seconds_count{instance="w1",dependency="objects",operation="write"} 0+100x120
			sluice_dependency_errors_total{instance="w1",dependency="objects",operation="write"} 0+50x120`,
	}},
	"SluiceDependencySlow": {fires: map[string]string{
		"Redis swaps": `
			sluice_dependency_seconds_bucket{instance="w1",dependency="redis",operation="read",le="0.01"} 0+90x120
			sluice_dependency_seconds_bucket{instance="w1",dependency="redis",operation="read",le="5"} 0+100x120
			sluice_dependency_seconds_bucket{instance="w1",dependency="redis",operation="read",le="+Inf"} 0+100x120`,
		"the object store lists slowly": `
			sluice_dependency_seconds_bucket{instance="w1",dependency="objects",operation="list",le="1"} 0x120
			sluice_dependency_seconds_bucket{instance="w1",dependency="objects",operation="list",le="5"} 0+100x120
			sluice_dependency_seconds_bucket{instance="w1",dependency="objects",operation="list",le="+Inf"} 0+100x120`,
	}},
	"SluiceAuditFailures": {fires: map[string]string{
		"the disk is full":              `sluice_audit_failures_total{instance="a1"} 0x115 1x5`,
		"of an API that has just begun": `sluice_audit_failures_total{instance="a2"} _x115 3x5`,
	}},
	"SluiceCertificateExpires": {fires: map[string]string{
		"in six days":              `sluice_tls_certificate_expiry_seconds{instance="a1",listener="public"} 518400x120`,
		"a new one cannot be used": `sluice_tls_certificate_reload_failures_total{instance="a1",listener="public"} 0x100 0+1x20`,
	}},
	"SluiceTracesLost": {fires: map[string]string{
		"the collector is down": `sluice_trace_export_failures_total{instance="a1"} 0x60 0+1x60`,
	}},
}

// TestEachAlertFiresWhenItShould evaluates the alerts by Prometheus' own engine.
func TestEachAlertFiresWhenItShould(t *testing.T) {
	engine := promqltest.NewTestEngine(t, false, 5*time.Minute, 100_000)
	for _, rule := range rules(t) {
		cases, known := troubles[rule.Alert]
		if !known || len(cases.fires) == 0 {
			t.Errorf("nothing shows that %s ever fires", rule.Alert)
		}
		if firing(t, engine, well, rule.Expr, time.Duration(rule.For)) {
			t.Errorf("%s fires when all is well", rule.Alert)
		}
		for name, series := range cases.fires {
			if !firing(t, engine, "load 1m\n"+series, rule.Expr, time.Duration(rule.For)) {
				t.Errorf("%s does not fire: %s", rule.Alert, name)
			}
		}
		for name, series := range cases.quiet {
			if firing(t, engine, "load 1m\n"+series, rule.Expr, time.Duration(rule.For)) {
				t.Errorf("%s fires: %s", rule.Alert, name)
			}
		}
	}
}

// firing reports whether the expression gives something at each minute of the time that it has to hold for, up to the
// end of the second hour.
func firing(t *testing.T, engine *promql.Engine, series, expr string, hold time.Duration) bool {
	t.Helper()
	var lines []string
	for line := range strings.Lines(series) {
		switch line = strings.TrimSpace(line); {
		case line == "":
		case strings.HasPrefix(line, "load"):
			lines = append(lines, line)
		default:
			lines = append(lines, "  "+line)
		}
	}
	storage := promqltest.LoadedStorage(t, strings.Join(lines, "\n"))
	defer storage.Close()
	end := time.Unix(0, 0).Add(119 * time.Minute)
	for at := end.Add(-hold); !at.After(end); at = at.Add(time.Minute) {
		q, err := engine.NewInstantQuery(t.Context(), storage, nil, expr, at)
		must(t, err)
		result := q.Exec(t.Context())
		must(t, result.Err)
		vector, err := result.Vector()
		must(t, err)
		q.Close()
		if len(vector) == 0 {
			return false
		}
	}
	return true
}
