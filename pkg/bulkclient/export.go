package bulkclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Options configure one export into a folder.
type Options struct {
	Dir string // the folder; created when missing, and removed again when nothing was written to it
	// StatusURL continues this job in an empty folder, instead of a kick-off.
	StatusURL string
	// Last is the folder of a finished export of the same request, which a new one continues: Dir becomes an up-to-date copy.
	// See [Client.Export].
	Last string
	// Resume continues the unfinished export in the folder. If there is none, a new one starts.
	Resume bool
	// KeepGzip keeps the files compressed when the server sends them so.
	KeepGzip bool
	// CancelOnInterrupt cancels the job at the server when the context is cancelled (not when it times out), and
	// removes the downloaded files: no later run could finish them.
	CancelOnInterrupt bool
	// MaxBytes limits the size of all files, uncompressed and as received; 0: no limit. A download ends when it is exceeded.
	MaxBytes int64

	last string // see state.Last
}

// Export runs a whole export into a folder: kick-off, polling, download, manifest.json. The folder must be empty, unless
// Options.Resume. After an error, a later call with Resume continues from the folder, without a new kick-off and
// without downloading existing bytes again. A finished folder contains only the data files,
// manifest.json, and the signed manifest if the server signs.
//
// With Options.Last only what changed since that export is exported, into the folder changesDir in the folder, and merged
// with a copy of the last folder, which is not changed. An error is ErrLast if the request cannot continue the last folder.
func (c *Client) Export(ctx context.Context, request Request, opts Options) (Report, error) {
	if opts.Last != "" {
		return c.update(ctx, request, opts)
	}
	begin, want := time.Now(), c.wanted(request, opts)
	return intoFolder(opts, want, func(folder *folder) (Report, error) {
		have, job, err := c.resumeOrKickOff(ctx, folder, want, opts.Resume)
		if err != nil {
			return Report{}, err
		}
		c.cfg.Observer.Started(job)
		report, err := c.fetch(ctx, folder, have, job, opts.MaxBytes, begin)
		if err != nil && opts.CancelOnInterrupt && errors.Is(ctx.Err(), context.Canceled) {
			ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelCall)
			defer stop()
			if cancelErr := c.Cancel(ctx, job); cancelErr != nil && !errors.Is(cancelErr, ErrNoJob) {
				return Report{}, cancelErr
			}
			return Report{}, errors.Join(ErrCancelled, err, folder.removeExport())
		}
		return report, err
	})
}

// wanted returns the state of an export that has not begun.
func (c *Client) wanted(request Request, opts Options) state {
	request = request.sorted()
	if opts.StatusURL == "" {
		request.Level = cmp.Or(request.Level, export.GroupLevel)
	}
	return state{
		Base: c.base.String(), Request: request, Listed: request.listed(), KeepGzip: opts.KeepGzip, StatusURL: opts.StatusURL,
		Last: opts.last,
	}
}

// fits returns an error if the export in the folder differs from the requested one.
func (s state) fits(want state) error {
	if want.StatusURL != "" && s.StatusURL != want.StatusURL {
		return fmt.Errorf("%w: it holds the export %s", ErrFolder, Job{StatusURL: s.StatusURL}.ID())
	}
	if s.follows(want) && s.KeepGzip == want.KeepGzip && s.Last == want.Last {
		return nil
	}
	return fmt.Errorf("%w: it holds another export: the base URL, level, group, parameters, compression or last export differ",
		ErrFolder)
}

// follows reports whether two states are of the same request.
func (s state) follows(other state) bool {
	return s.Base == other.Base && s.sameAs(other.Request) && s.Listed == other.Listed
}

// resumeOrKickOff returns the unfinished export of the folder, or kicks off a new one and records it.
func (c *Client) resumeOrKickOff(ctx context.Context, folder *folder, want state, resume bool) (state, Job, error) {
	var have state
	err := folder.load(stateFile, &have)
	switch {
	case err == nil && !resume:
		return state{}, Job{}, errUnfinished
	case err == nil:
		return have, have.job(), have.fits(want)
	case !errors.Is(err, fs.ErrNotExist):
		return state{}, Job{}, err
	}
	if err := folder.mustBeEmpty(); err != nil {
		return state{}, Job{}, err
	}
	job := Job{StatusURL: want.StatusURL, IG: c.cfg.IG}
	if job.StatusURL == "" {
		if job, err = c.KickOff(ctx, want.Request); err != nil {
			return state{}, Job{}, err
		}
	}
	want.StatusURL, want.IG, want.Accepted = job.StatusURL, job.IG, time.Now().UTC()
	return want, job, folder.save(stateFile, want)
}

func (c *Client) fetch(
	ctx context.Context, folder *folder, have state, job Job, maxBytes int64, begin time.Time,
) (Report, error) {
	manifest, err := c.Await(ctx, job)
	var refused *ServerError
	if errors.As(err, &refused) && (refused.Status == http.StatusNotFound || refused.Status == http.StatusGone) {
		return Report{}, fmt.Errorf("the export no longer exists; a new one needs an empty folder: %w", err)
	}
	if err != nil {
		return Report{}, err
	}
	if err := c.pages(ctx, job, manifest); err != nil {
		return Report{}, err
	}
	recorded, err := folder.recorded()
	if err != nil {
		return Report{}, err
	}
	known, err := folder.known(recorded)
	if err != nil {
		return Report{}, err
	}
	files, err := files(manifest, known)
	if err != nil {
		return Report{}, err
	}
	d := &download{
		client: c, folder: folder, keepGzip: have.KeepGzip, maxBytes: maxBytes, open: !manifest.RequiresAccessToken,
		ownOnly: slices.Contains(manifest.Missing, "requiresAccessToken"),
	}
	results, err := d.all(ctx, files, recorded)
	if err != nil {
		return Report{}, err
	}
	for i, item := range manifest.items() {
		item.Local = &results[i].stored
	}
	signed, err := c.keep(ctx, folder, manifest)
	if err != nil {
		return Report{}, err
	}
	done := finished{Manifest: *manifest, run: run{
		Export: have, Seconds: time.Since(begin).Seconds(), Warnings: manifest.warnings(), Signed: signed,
	}}
	if err := folder.save(manifestFile, done); err != nil {
		return Report{}, err
	}
	if err := folder.remove(stateFile, journalFile); err != nil {
		return Report{}, err
	}
	return newReport(folder, done, results)
}

// reportFinished reports on an export that an earlier run finished, and removes files that the run left behind.
func reportFinished(folder *folder, done finished, want state) (Report, error) {
	if err := done.Export.fits(want); err != nil {
		return Report{}, err
	}
	if err := folder.remove(stateFile, journalFile); err != nil {
		return Report{}, err
	}
	results, err := done.results()
	if err != nil {
		return Report{}, err
	}
	return newReport(folder, done, results)
}
