package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// maxAuditLine bounds a line of an audit log. The longest of Sluice's have the names of all types.
const maxAuditLine = 1 << 20

// auditFilter selects events of an audit log.
type auditFilter struct {
	group, subject, job string
	since               time.Time

	jobs map[string]bool // kicked off for the group so far
}

// auditEvent is the part of a line that is shown.
type auditEvent struct {
	Subtype []struct {
		System, Code string
	}
	Recorded time.Time
	Outcome  string
	Desc     string `json:"outcomeDesc"`
	Agent    []struct {
		Who struct {
			Identifier struct{ System, Value string }
		}
		Network struct{ Address string }
	}
	Entity []struct {
		What struct {
			Identifier struct{ System, Value string }
		}
		Name   string
		Detail []struct {
			Type  string
			Value string `json:"valueString"`
		}
	}
}

func (a *app) auditShow() *cobra.Command {
	var filter auditFilter
	var since string
	cmd := &cobra.Command{
		Use:   "show [--group ID] [--subject NAME] [--job ID] [--since TIME] FILE...",
		Short: "Show events of an audit log",
		Long: `Show events of audit logs, oldest file first ("-" is standard input). The command reads every line and does
not verify the chain: see sluice admin audit verify. With --group it shows the kick-offs of the group, and all other
events of these exports: status, files, cancel, expiry. --since is a date, a time (RFC 3339) or a duration before now.

A line has time, action, outcome, subject and issuer, address, job or other object, file, bytes and reason. With --json it
is the AuditEvent as it is in the log.`,
		Example: `  sluice admin audit show --group diabetes --since 2026-10-01 api.ndjson
  sluice admin audit show --subject research-team --since 720h --json api.ndjson | jq .recorded`,
		Args: atLeast("FILE"),
		RunE: a.run(func(ctx context.Context, files []string) (err error) {
			if filter.since, err = sinceOf(since, time.Now()); err != nil {
				return err
			}
			filter.jobs = map[string]bool{}
			out, bad := bufio.NewWriter(a.stdout), 0
			for _, name := range files {
				n, err := filter.show(ctx, name, out, a.flags.json)
				if err != nil {
					return errors.Join(err, out.Flush())
				}
				bad += n
			}
			if err := out.Flush(); err != nil {
				return fmt.Errorf("write the events: %w", err)
			}
			if bad > 0 {
				return fmt.Errorf("lines that are not AuditEvents and were not searched: %d", bad)
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringVar(&filter.group, "group", "", "events of exports of this group")
	f.StringVar(&filter.subject, "subject", "", "events of this subject (of a token)")
	f.StringVar(&filter.job, "job", "", "events of this export")
	f.StringVar(&since, "since", "", "events from this time on, such as 2026-10-01 or 720h")
	f.BoolVar(&a.flags.json, "json", false, "print the AuditEvents, one a line")
	return cmd
}

// sinceOf parses --since.
func sinceOf(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if before, err := time.ParseDuration(text); err == nil {
		return now.Add(-before), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, usage("--since must be a date such as 2026-10-01, a time such as 2026-10-01T12:00:00Z, or a " +
		"duration such as 720h")
}

// show writes the selected events of a file, and returns the number of lines that cannot be read.
func (f *auditFilter) show(ctx context.Context, name string, out *bufio.Writer, asJSON bool) (bad int, err error) {
	var from io.Reader = os.Stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return 0, fmt.Errorf("read the audit log: %w", err)
		}
		defer file.Close()
		from = file
	}
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxAuditLine)
	for lines.Scan() {
		if ctx.Err() != nil {
			return bad, ctx.Err()
		}
		var event auditEvent
		if json.Unmarshal(lines.Bytes(), &event) != nil || event.action() == "" {
			bad++
			continue
		}
		if !f.selects(event) {
			continue
		}
		// The writer keeps its first error.
		if asJSON {
			_, _ = out.Write(lines.Bytes())
			_ = out.WriteByte('\n')
		} else {
			_, _ = fmt.Fprintln(out, event)
		}
	}
	if err := lines.Err(); err != nil {
		return bad, fmt.Errorf("read %s: %w", place(name), err)
	}
	return bad, nil
}

// selects reports whether the event is to be shown, and remembers the exports of the group.
func (f *auditFilter) selects(e auditEvent) bool {
	job, target, _ := e.object()
	ofGroup := f.group == "" || f.jobs[job] && job != "" || target == "Group/"+f.group
	if f.group != "" && ofGroup && job != "" {
		f.jobs[job] = true
	}
	issuerAndSubject := e.agent()
	return ofGroup && (f.subject == "" || issuerAndSubject[1] == f.subject) && (f.job == "" || job == f.job) &&
		!e.Recorded.Before(f.since)
}

func (e auditEvent) action() string {
	for _, subtype := range e.Subtype {
		if subtype.System == "urn:sluice:audit:action" {
			return subtype.Code
		}
	}
	return ""
}

// agent returns issuer and subject.
func (e auditEvent) agent() (pair [2]string) {
	for _, agent := range e.Agent {
		pair = [2]string{agent.Who.Identifier.System, agent.Who.Identifier.Value}
	}
	return pair
}

// object returns the job, the other object, such as Group/g, and the details.
func (e auditEvent) object() (job, target string, details map[string]string) {
	details = map[string]string{}
	for _, entity := range e.Entity {
		if entity.What.Identifier.System == "urn:sluice:job" {
			job = entity.What.Identifier.Value
		}
		if entity.Name != "" {
			target = entity.Name
		}
		for _, detail := range entity.Detail {
			details[detail.Type] = detail.Value
		}
	}
	return job, target, details
}

// String is one line, without what a terminal could interpret.
func (e auditEvent) String() string {
	outcomes := map[string]string{"0": "success", "4": "refused", "8": "failed"}
	job, target, details := e.object()
	pair := e.agent()
	parts := []string{e.Recorded.UTC().Format(time.RFC3339), fmt.Sprintf("%-8s %-7s", e.action(), outcomes[e.Outcome])}
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+"="+value)
		}
	}
	add("subject", pair[1])
	add("issuer", pair[0])
	for _, agent := range e.Agent {
		add("address", agent.Network.Address)
	}
	add("job", job)
	add("of", target)
	add("file", details["file"])
	add("bytes", details["bytes"])
	add("reason", e.Desc)
	return printable(strings.Join(parts, " "))
}
