package queue

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sluice-fhir/sluice/pkg/export"
	sluicev1 "github.com/sluice-fhir/sluice/proto/sluice/v1"
)

// FuzzDecodeTask: a decoded task has a job, a unit and a fence of valid form, because they become parts of keys, and
// encodes to the same task.
func FuzzDecodeTask(f *testing.F) {
	good := Task{Kind: export.KindExport, Job: export.NewJobID(), Unit: "Patient-00000", Fence: 3,
		Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	for _, change := range []func(*Task){
		func(*Task) {}, func(t *Task) { t.Job = "" }, func(t *Task) { t.Job = "../other" }, func(t *Task) { t.Unit = "" },
		func(t *Task) { t.Unit = "a/b" }, func(t *Task) { t.Fence = -1 }, func(t *Task) { t.Fence = 0 },
		func(t *Task) { t.Kind = "other" }, func(t *Task) { t.Trace = "no trace at all" },
	} {
		task := good
		change(&task)
		payload, err := task.payload()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Add([]byte(nil))
	f.Add([]byte("\x0a\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		task, err := decodeTask(payload)
		if err != nil {
			if task != (Task{}) {
				t.Errorf("%+v beside the error %v", task, err)
			}
			return
		}
		checkJob(t, task.Job)
		if task.Unit == "" || strings.ContainsAny(string(task.Unit), "/.") || task.Fence < 1 {
			t.Errorf("unit %q at fence %d", task.Unit, task.Fence)
		}
		again, err := task.payload()
		if err != nil {
			t.Fatal(err)
		}
		if same, err := decodeTask(again); err != nil || same != task {
			t.Errorf("%+v became %+v, %v", task, same, err)
		}
	})
}

// FuzzDecodePurge: a decoded purge has a valid job id, because it deletes everything under the job's prefix.
func FuzzDecodePurge(f *testing.F) {
	for _, id := range []string{"", "..", "a/b", string(export.NewJobID()), strings.Repeat("A", 26)} {
		payload, err := proto.Marshal(&sluicev1.PurgeTask{JobId: id})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		if id, err := decodePurge(payload); err == nil {
			checkJob(t, id)
		}
	})
}

func checkJob(t *testing.T, id export.JobID) {
	t.Helper()
	if _, err := export.ParseJobID(string(id)); err != nil {
		t.Errorf("job %q", id)
	}
}
