package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// Bounds of the announced poll interval.
const (
	shortestPoll = time.Second
	longestPoll  = 30 * time.Second
)

// exportStatusHeader has the status of an export whose kick-off wants it apart from that of the poll (S-19).
const exportStatusHeader = "X-Export-Status"

func exportStatus(code int) string { return fmt.Sprintf("%d %s", code, http.StatusText(code)) }

// pollStatus returns the status of the answer to a poll of a job whose own status is code. If the two are separate, it is
// 200, and code goes into the header.
func pollStatus(c *gin.Context, job export.Job, code int) int {
	if !job.Request.SeparateStatus {
		return code
	}
	c.Header(exportStatusHeader, exportStatus(code))
	return http.StatusOK
}

// status answers in one of three ways (spec 3): 404, 202 or 200, and 500 for a job that failed as a whole.
func (s *service) status(c *gin.Context) error {
	job, err := s.ownJob(c)
	if err != nil {
		return err
	}
	// A token that is narrower than that of the kick-off may not read the status (Z-08). The caller is the owner, so the
	// refusal reveals nothing.
	denied := slices.DeleteFunc(slices.Clone(job.Request.Types), principalOf(c).Scopes.MayRead)
	if len(denied) > 0 {
		return forbidden("The export contains types that this token may not read: " + list(denied) + ".")
	}
	if err := s.limit(c, "status", "status requests", s.StatusLimit); err != nil {
		return err
	}
	switch job.State {
	case export.Completed:
		return s.manifest(c, job)
	case export.Failed:
		return s.reportFailure(c, job)
	}
	return s.progress(c, job)
}

// ownJob returns the job in the path if it belongs to the caller and is visible, otherwise the 404 of spec 3. Jobs of
// others and unknown jobs cost the same: one read of a few fields. The record is read only for its owner, because its size
// could be measured. An invalid id skips the read, which discloses nothing.
func (s *service) ownJob(c *gin.Context) (export.Job, error) {
	id, err := export.ParseJobID(c.Param("job"))
	if err != nil {
		return export.Job{}, notAvailable()
	}
	noteJob(c, id)
	job, err := s.Jobs.Head(c.Request.Context(), id)
	if err == nil && (job.Owner != principalOf(c).Owner || !job.Visible(s.Now())) {
		return export.Job{}, notAvailable()
	}
	if err == nil {
		job, err = s.Jobs.Job(c.Request.Context(), id)
	}
	if errors.Is(err, export.ErrNotFound) || err == nil && !job.Visible(s.Now()) { // it may have ended in between
		return export.Job{}, notAvailable()
	}
	if err != nil {
		return export.Job{}, fmt.Errorf("reading job %s: %w", id, err)
	}
	noteTrace(c, job.Trace)
	return job, nil
}

// progress responds for a live job. Besides the subject's limit, these polls are limited per job: only they announce an
// interval, so a client that obeys it is never refused (pitfall 29).
func (s *service) progress(c *gin.Context, job export.Job) error {
	interval := pollInterval(s.Now().Sub(job.Created))
	wait, err := s.Jobs.AllowPoll(c.Request.Context(), job.ID, interval, s.PollLimit)
	if err != nil {
		return err
	}
	if wait > 0 {
		return tooMuch("The status was requested far more often than the header Retry-After of its responses allows.",
			min(wait, interval))
	}
	status := pollStatus(c, job, http.StatusAccepted)
	if err := s.recordEvent(c, succeeded(audit.Status, job.ID, status)); err != nil {
		return err
	}
	unit := time.Second // RFC 9110
	if job.Request.Dialect == export.Classic && status == http.StatusAccepted {
		unit = time.Millisecond // spec 3
	}
	c.Header("Retry-After", inUnits(interval, unit))
	c.Header("X-Progress", progressWord(job.State))
	c.Header("X-Progress-Percent", strconv.Itoa(min(job.Percent, 99)))
	writeHeader(c, status)
	return nil
}

// pollInterval is the announced wait: a tenth of the job's age, so that the end of a short export is noticed soon and a
// long one costs few polls. It is in whole seconds, so that it is the same in both dialects.
func pollInterval(age time.Duration) time.Duration {
	return min(max((age/10).Truncate(time.Second), shortestPoll), longestPoll)
}

// inUnits writes a wait for Retry-After, rounded up and never zero. It is never a date, which popular clients misread
// (pitfall 30). Only the 202 of a classic job has milliseconds: HTTP libraries and proxies read every other one (spec 7).
func inUnits(wait, unit time.Duration) string {
	return strconv.FormatInt(int64(max((wait+unit-1)/unit, 1)), 10)
}

// progressWord is the word of spec 3 for a live state: "completed" means that only the manifest is being sealed.
func progressWord(state export.State) string {
	switch state {
	case export.Scheduled:
		return "scheduled"
	case export.Sealing:
		return "completed"
	}
	return "started"
}

// reportFailure responds for a job that failed as a whole, until it expires.
func (s *service) reportFailure(c *gin.Context, job export.Job) error {
	r := failed(job)
	if !job.Request.SeparateStatus {
		return r
	}
	event := audit.Event{
		Action: audit.Status, Outcome: audit.Failed, Job: job.ID, HTTPStatus: http.StatusOK, Reason: r.text,
	}
	if err := s.recordEvent(c, event); err != nil {
		return err
	}
	r.header = append(r.header, exportStatusHeader, exportStatus(r.status))
	r.status = http.StatusOK
	s.writeProblem(c, r)
	return nil
}

// failed is the answer for a failed job. Its reason is meant for the owner. The issue code is not transient: that would
// mean that the job is live (S-12).
func failed(job export.Job) refusal {
	text := "The export failed."
	if job.Failure != "" {
		text = "The export failed: " + job.Failure
	}
	r := refused(http.StatusInternalServerError, "processing", text)
	if !job.Expires.IsZero() {
		r.header = []string{"Expires", httpDate(job.Expires)}
	}
	return r
}

// httpDate formats a time as an HTTP-date (RFC 9110 section 5.6.7, pitfall 18).
func httpDate(t time.Time) string { return t.UTC().Format(http.TimeFormat) }
