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

// Options say how an export is brought home.
type Options struct {
	Dir string // the folder; made when missing
	// Resume goes on with the unfinished export in the folder. When there is none, a new one is made.
	Resume bool
	// KeepGzip keeps the files as they are stored, gzipped, when the server serves them so.
	KeepGzip bool
	// CancelOnInterrupt cancels the job at the server when the context is cancelled (not when it times out), and
	// removes what was downloaded: nothing could finish it.
	CancelOnInterrupt bool
}

// Export runs a whole export into a folder: kick-off, wait, download, manifest.json. The folder must be empty, unless
// Options.Resume. When Export returns an error the folder holds what a later call with Resume needs to go on, without
// a new kick-off and without the bytes that are there already. A finished folder holds the data files and
// manifest.json and nothing else.
func (c *Client) Export(ctx context.Context, request Request, opts Options) (report Report, err error) {
	begin := time.Now()
	folder, err := openFolder(opts.Dir)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()

	want := wanted(c.base.String(), request, opts.KeepGzip)
	finished, err := folder.sealed()
	switch {
	case err == nil && opts.Resume:
		return again(folder, finished, want)
	case err == nil:
		return Report{}, fmt.Errorf("%w: it already holds a finished export", ErrFolder)
	case !errors.Is(err, fs.ErrNotExist):
		return Report{}, err
	}
	export, err := c.job(ctx, folder, want, opts.Resume)
	if err != nil {
		return Report{}, err
	}
	report, err = c.fetch(ctx, folder, export, begin)
	if err != nil && opts.CancelOnInterrupt && errors.Is(ctx.Err(), context.Canceled) {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelCall)
		defer stop()
		if failed := c.Cancel(ctx, export.job()); failed != nil {
			return Report{}, errors.Join(err, failed)
		}
		return Report{}, errors.Join(err, folder.abandon())
	}
	return report, err
}

// wanted is the state of an export that is still to be kicked off. The order of types means nothing.
func wanted(base string, request Request, keepGzip bool) state {
	types := append([]string{}, request.Types...)
	slices.Sort(types)
	return state{Base: base, Group: request.Group, Types: slices.Compact(types), KeepGzip: keepGzip}
}

// fits refuses to take the export in a folder for another one.
func (s state) fits(want state) error {
	if s.Base == want.Base && s.Group == want.Group && slices.Equal(s.Types, want.Types) && s.KeepGzip == want.KeepGzip {
		return nil
	}
	return fmt.Errorf("%w: it holds an export of something else: base URL, group, types and compression differ",
		ErrFolder)
}

// job returns the export that the folder remembers, or kicks one off and remembers it.
func (c *Client) job(ctx context.Context, folder *folder, want state, resume bool) (state, error) {
	var have state
	err := folder.load(stateFile, &have)
	switch {
	case err == nil && !resume:
		return state{}, fmt.Errorf("%w: it holds an unfinished export: resume it or take another folder", ErrFolder)
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

// fetch waits for the job and brings its files home.
func (c *Client) fetch(ctx context.Context, folder *folder, export state, begin time.Time) (Report, error) {
	manifest, err := c.Await(ctx, export.job())
	if err != nil {
		var refused *ServerError
		if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
			err = fmt.Errorf("the export is gone; a new one needs an empty folder: %w", err)
		}
		return Report{}, err
	}
	files, err := files(manifest)
	if err != nil {
		return Report{}, err
	}
	d := &download{
		client:   c,
		folder:   folder,
		secret:   manifest.RequiresAccessToken,
		unit:     export.job().unit(),
		keepGzip: export.KeepGzip,
	}
	results, err := d.all(ctx, files)
	if err != nil {
		return Report{}, err
	}
	i := 0
	for _, list := range [][]Item{manifest.Output, manifest.Deleted, manifest.Error} { // as files lists them
		for k := range list {
			list[k].Local = &results[i].stored
			i++
		}
	}
	seconds := time.Since(begin).Seconds()
	done := sealed{Manifest: *manifest, Export: export, Seconds: seconds}
	if err := folder.save(manifestFile, done); err != nil {
		return Report{}, err
	}
	if err := folder.remove(stateFile, journalFile); err != nil {
		return Report{}, err
	}
	return makeReport(folder, manifest.TransactionTime, results, seconds)
}

// again reports on an export that an earlier run finished, and clears away what it was killed too early to clear.
func again(folder *folder, finished sealed, want state) (Report, error) {
	if err := finished.Export.fits(want); err != nil {
		return Report{}, err
	}
	if err := folder.remove(stateFile, journalFile); err != nil {
		return Report{}, err
	}
	results, err := finished.results()
	if err != nil {
		return Report{}, err
	}
	return makeReport(folder, finished.TransactionTime, results, finished.Seconds)
}
