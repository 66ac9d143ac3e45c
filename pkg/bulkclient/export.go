package bulkclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"time"
)

// Options configure one export into a folder.
type Options struct {
	Dir string // the folder; created when missing
	// Resume continues the unfinished export in the folder. If there is none, a new one starts.
	Resume bool
	// KeepGzip keeps the files compressed when the server sends them so.
	KeepGzip bool
	// CancelOnInterrupt cancels the job at the server when the context is cancelled (not when it times out), and
	// removes the downloaded files: no later run could finish them.
	CancelOnInterrupt bool
}

// Export runs a whole export into a folder: kick-off, polling, download, manifest.json. The folder must be empty, unless
// Options.Resume. After an error, a later call with Resume continues from the folder, without a new kick-off and
// without downloading existing bytes again. A finished folder contains only the data files and manifest.json.
func (c *Client) Export(ctx context.Context, request Request, opts Options) (report Report, err error) {
	begin := time.Now()
	folder, err := openFolder(opts.Dir)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()

	types := slices.Sorted(slices.Values(request.Types))
	want := state{
		Base: c.base.String(), Group: request.Group, Types: append([]string{}, slices.Compact(types)...), KeepGzip: opts.KeepGzip,
	}
	done, err := folder.finished()
	switch {
	case err == nil && opts.Resume:
		return reportFinished(folder, done, want)
	case err == nil:
		return Report{}, fmt.Errorf("%w: it already holds a finished export", ErrFolder)
	case !errors.Is(err, fs.ErrNotExist):
		return Report{}, err
	}
	export, err := c.resumeOrKickOff(ctx, folder, want, opts.Resume)
	if err != nil {
		return Report{}, err
	}
	report, err = c.fetch(ctx, folder, export, begin)
	if err != nil && opts.CancelOnInterrupt && errors.Is(ctx.Err(), context.Canceled) {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelCall)
		defer stop()
		if cancelErr := c.Cancel(ctx, export.job()); cancelErr != nil {
			return Report{}, errors.Join(err, cancelErr)
		}
		return Report{}, errors.Join(err, folder.removeExport())
	}
	return report, err
}

// fits returns an error if the export in the folder differs from the requested one.
func (s state) fits(want state) error {
	if s.Base == want.Base && s.Group == want.Group && slices.Equal(s.Types, want.Types) && s.KeepGzip == want.KeepGzip {
		return nil
	}
	return fmt.Errorf("%w: it holds another export: the base URL, group, types or compression differ", ErrFolder)
}

// resumeOrKickOff returns the unfinished export of the folder, or kicks off a new one and records it.
func (c *Client) resumeOrKickOff(ctx context.Context, folder *folder, want state, resume bool) (state, error) {
	var have state
	err := folder.load(stateFile, &have)
	switch {
	case err == nil && !resume:
		return state{}, fmt.Errorf("%w: it holds an unfinished export: resume it or use another folder", ErrFolder)
	case err == nil:
		return have, have.fits(want)
	case !errors.Is(err, fs.ErrNotExist):
		return state{}, err
	}
	if err := folder.mustBeEmpty(); err != nil {
		return state{}, err
	}
	job, err := c.KickOff(ctx, Request{Group: want.Group, Types: want.Types})
	if err != nil {
		return state{}, err
	}
	want.StatusURL, want.IG, want.Accepted = job.StatusURL, job.IG, time.Now().UTC()
	return want, folder.save(stateFile, want)
}

func (c *Client) fetch(ctx context.Context, folder *folder, export state, begin time.Time) (Report, error) {
	manifest, err := c.Await(ctx, export.job())
	var refused *ServerError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return Report{}, fmt.Errorf("the export no longer exists; a new one needs an empty folder: %w", err)
	}
	if err != nil {
		return Report{}, err
	}
	files, err := files(manifest)
	if err != nil {
		return Report{}, err
	}
	d := &download{
		client: c, folder: folder, authorize: manifest.RequiresAccessToken, unit: export.job().unit(),
		keepGzip: export.KeepGzip,
	}
	results, err := d.all(ctx, files)
	if err != nil {
		return Report{}, err
	}
	for i, item := range manifest.items() {
		item.Local = &results[i].stored
	}
	seconds := time.Since(begin).Seconds()
	if err := folder.save(manifestFile, finished{Manifest: *manifest, Export: export, Seconds: seconds}); err != nil {
		return Report{}, err
	}
	if err := folder.remove(stateFile, journalFile); err != nil {
		return Report{}, err
	}
	return newReport(folder, manifest.TransactionTime, results, seconds)
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
	return newReport(folder, done.TransactionTime, results, done.Seconds)
}
