package e2e

import (
	"encoding/hex"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// tracedSetup is a deployment whose processes send spans to the endpoint.
func tracedSetup(data, endpoint string) setup {
	traced := []string{"SLUICE_TRACE_ENDPOINT=" + endpoint}
	return setup{data: data, workers: 2, api: traced, worker: traced, scheduler: traced}
}

// A job is one trace, from the kick-off in the API to the seal in a worker, and its log lines have the trace id.
func TestAJobIsOneTrace(t *testing.T) {
	t.Parallel()
	data := generated(t, 10)
	population := expect.Read(t, data)
	collector := testenv.NewCollector(t)
	s := deploy(t, tracedSetup(data, collector.URL))
	status := s.kickoff("all", "")
	m := s.wait(status, time.Minute)
	job := path.Base(status)
	for _, p := range s.processes {
		p.stop() // which sends the remaining spans
	}

	spans := map[string][]testenv.Span{} // of the job, by name
	byID := map[string]testenv.Span{}
	traces := map[string]bool{}
	for _, span := range collector.Spans() {
		traces[string(span.TraceId)] = true
		spans[span.GetName()] = append(spans[span.GetName()], span)
		byID[string(span.SpanId)] = span
		for key, value := range span.Attributes {
			_, patient := population.ByKey["Patient/"+value]
			if patient || value == "all" || strings.Contains(value, "everything") {
				t.Errorf("%s: %s is %q", span.GetName(), key, value)
			}
		}
	}
	if len(traces) != 1 || len(spans["kick-off"]) != 1 {
		t.Fatalf("%d traces, spans %v", len(traces), spans)
	}
	root := spans["kick-off"][0]
	if len(root.ParentSpanId) != 0 || root.Service != "sluice-api" || root.Attributes["sluice.job_id"] != job {
		t.Errorf("kick-off: %v", root)
	}
	types := map[string]bool{}
	for _, item := range m.Output {
		types[item.Type] = true
	}
	for name, want := range map[string]struct {
		parents []string // what the span is directly below
		links   []string // what it is linked to: what enqueued it
		service string
	}{
		"plan":       {[]string{"kick-off"}, []string{"kick-off"}, "sluice-worker"},
		"export":     {[]string{"kick-off"}, []string{"plan", "export"}, "sluice-worker"},
		"references": {[]string{"kick-off"}, []string{"export"}, "sluice-worker"},
		"referenced": {[]string{"kick-off"}, []string{"references", "referenced"}, "sluice-worker"},
		"seal":       {[]string{"kick-off"}, []string{"referenced"}, "sluice-worker"},
		"cohort":     {[]string{"plan"}, nil, "sluice-worker"},
		"upload":     {[]string{"export", "referenced"}, nil, "sluice-worker"},
		"manifest":   {[]string{"seal"}, nil, "sluice-worker"},
		"commit":     {[]string{"plan", "export", "references", "referenced", "seal"}, nil, "sluice-worker"},
	} {
		if len(spans[name]) == 0 {
			t.Errorf("there is no span %s", name)
		}
		for _, span := range spans[name] {
			if !slices.Contains(want.parents, byID[string(span.ParentSpanId)].GetName()) || span.Service != want.service {
				t.Errorf("%s of %s is below %q", name, span.Service, byID[string(span.ParentSpanId)].GetName())
			}
			if want.links == nil {
				continue
			}
			if len(span.GetLinks()) != 1 || !slices.Contains(want.links, byID[string(span.GetLinks()[0].SpanId)].GetName()) {
				t.Errorf("%s has links %v", name, span.GetLinks())
			}
			if span.Attributes["sluice.job_id"] != job || span.Attributes["sluice.outcome"] != "done" ||
				span.Attributes["sluice.unit"] == "" || span.Attributes["sluice.fence"] == "" {
				t.Errorf("%s: %v", name, span.Attributes)
			}
		}
	}
	uploaded := map[string]bool{}
	for _, span := range spans["upload"] {
		uploaded[span.Attributes["sluice.type"]] = true
	}
	for typ := range types {
		if !uploaded[typ] {
			t.Errorf("no upload of %s", typ)
		}
	}
	linesNameTheJob(t, s, job, hex.EncodeToString(root.TraceId))
}

// linesNameTheJob fails for a log line with a unit but no job, and for one with the job but no trace.
func linesNameTheJob(t *testing.T, s *stack, job, trace string) {
	t.Helper()
	lines := 0
	for _, p := range s.processes {
		for _, entry := range p.Lines() {
			_, unit := entry["unit"]
			switch id := entry["job_id"]; {
			case unit && id == nil:
				t.Errorf("%s: a unit without a job: %v", p.Name(), entry)
			case id == job && entry["trace_id"] != trace && entry["msg"] != "task is a duplicate, late, or of an ended job":
				t.Errorf("%s: the job without its trace: %v", p.Name(), entry)
			case id == job:
				lines++
			}
		}
	}
	if lines < 10 {
		t.Errorf("only %d lines have the job's id", lines)
	}
}

// An unavailable collector does not affect exports.
func TestACollectorThatIsDownHarmsNoExport(t *testing.T) {
	t.Parallel()
	data := generated(t, 10)
	population := expect.Read(t, data)
	s := deploy(t, tracedSetup(data, "http://127.0.0.1:1"))
	m := s.wait(s.kickoff("all", ""), time.Minute)
	expect.SameLines(t, "all", s.lines(m.Output), population.Export(population.Members("all")))
	lost := false
	for _, p := range s.processes {
		p.stop()
		_, told := p.Find(func(e map[string]any) bool {
			msg, _ := e["msg"].(string)
			return strings.HasPrefix(msg, "spans are lost")
		})
		lost = lost || told
	}
	if !lost {
		t.Error("no process logs that spans are lost")
	}
}
