package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// recentBytes bounds what Recent reads: thousands of lines at the end of the file.
const recentBytes = 1 << 20

// Entry is an event of the log.
type Entry struct {
	Event
	At time.Time
}

// Recent returns the last events of agents of this issuer, at most the given number, newest first. Only the fields Action,
// Outcome, Agent, Job, Target and Reason are set. It reads the end of the current file and does not verify it. A log on
// standard output has none.
func (l *Log) Recent(issuer string, most int) (entries []Entry, err error) {
	f, isFile := l.sink.(*file)
	if !isFile {
		return nil, nil
	}
	text, err := tail(f.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a rotated log begins with its next event
		return nil, fmt.Errorf("read the audit log: %w", err)
	}
	for _, line := range slices.Backward(bytes.Split(text, []byte("\n"))) {
		if len(entries) == most {
			break
		}
		// The first line may be cut, and the last one be written at the moment.
		var r resource
		if json.Unmarshal(line, &r) != nil || len(r.Subtype) == 0 || len(r.Agent) == 0 {
			continue
		}
		if who := r.Agent[0].Who; who != nil && who.Identifier != nil && who.Identifier.System == issuer {
			entries = append(entries, r.entry())
		}
	}
	return entries, nil
}

func tail(path string) (text []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	from := max(info.Size()-recentBytes, 0)
	return io.ReadAll(io.NewSectionReader(file, from, info.Size()-from))
}

func (r resource) entry() Entry {
	e := Entry{Event: Event{
		Action: Action(r.Subtype[0].Code), Reason: r.OutcomeDesc,
		Agent: export.Owner{Issuer: r.Agent[0].Who.Identifier.System, Subject: r.Agent[0].Who.Identifier.Value},
	}}
	e.At, _ = time.Parse(instantForm, r.Recorded) // zero if it is not a time
	for outcome, code := range outcomes {
		if code == r.Outcome {
			e.Outcome = outcome
		}
	}
	for _, entity := range r.Entity {
		if entity.What != nil && entity.What.Identifier != nil {
			e.Job = export.JobID(entity.What.Identifier.Value)
		}
		if entity.Name != "" {
			e.Target = entity.Name
		}
	}
	return e
}
