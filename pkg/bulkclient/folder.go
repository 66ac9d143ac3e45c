package bulkclient

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/filelock"
)

// The files of a folder beside the data files. Names of data files end in .ndjson or .ndjson.gz, so they never collide
// with these.
const (
	manifestFile = "manifest.json" // of a finished export: written last; beside it those of signed.go
	stateFile    = "export.json"   // of an unfinished export: the job and the request
	journalFile  = "export.files"  // of an unfinished export: one journalEntry per line
	partSuffix   = ".part"         // a download as received
	metaSuffix   = ".part.json"    // its meta
	newSuffix    = ".new"          // a file that is being written
)

// StoredFile is a finished file in the folder.
type StoredFile struct {
	File      string `json:"file"`      // name in the folder
	SHA256    string `json:"sha256"`    // hex, of the file in the folder
	Size      int64  `json:"size"`      // bytes of the file in the folder
	Bytes     int64  `json:"bytes"`     // uncompressed
	Resources int64  `json:"resources"` // lines
	Type      string `json:"type,omitempty"`
}

type journalEntry struct {
	StoredFile
	URL string `json:"url"`
}

// state is what a later run needs to resume.
type state struct {
	Base string `json:"base"`
	Request
	Listed patientList `json:"patients,omitzero"`
	// Last is the SHA-256 of the manifest.json of the folder that the export continues, in hex; "": none (Options.Last).
	Last      string    `json:"last,omitempty"`
	KeepGzip  bool      `json:"keep_gzip"`
	StatusURL string    `json:"status_url"`
	IG        bool      `json:"ig"`
	Accepted  time.Time `json:"accepted"`
}

func (s state) job() Job { return Job{StatusURL: s.StatusURL, IG: s.IG} }

// finished is the manifest.json of a finished folder: the server's manifest, with the stored file of every item.
type finished struct {
	Manifest
	run
}

// run is what this client adds to a manifest.
type run struct {
	Export   state    `json:"export"`
	Seconds  float64  `json:"seconds"` // duration of the run that finished the export
	Warnings []string `json:"warnings,omitempty"`
	Signed   bool     `json:"signed,omitempty"`  // the folder has the signed manifest
	Changes  *Changes `json:"changes,omitempty"` // of a copy that was brought up to date; nil: the folder is as exported
}

// results returns the stored files of the manifest.
func (f *finished) results() ([]result, error) {
	files, err := files(&f.Manifest, nil)
	if err != nil {
		return nil, err
	}
	results := make([]result, 0, len(files))
	for i, item := range f.items() {
		if item.Local == nil {
			return nil, fmt.Errorf("%s has no stored file for %s", manifestFile, files[i].Type)
		}
		files[i].Type = cmp.Or(files[i].Type, item.Local.Type)
		results = append(results, result{file: files[i], stored: *item.Local})
	}
	return results, nil
}

// folder is the only place that a client writes to. The os.Root keeps every name inside it. One process at a time
// holds its lock.
type folder struct {
	root *os.Root
	lock *os.File
	mu   sync.Mutex // guards the journal
}

// intoFolder runs the wanted export into the folder, unless an earlier run finished it there. A missing folder is created,
// and removed again if nothing was written to it.
func intoFolder(opts Options, want state, export func(*folder) (Report, error)) (report Report, err error) {
	_, missing := os.Stat(opts.Dir)
	if err := os.MkdirAll(opts.Dir, 0o750); err != nil {
		return Report{}, fmt.Errorf("create the folder: %w", err)
	}
	f, err := openFolder(opts.Dir)
	if err != nil {
		return Report{}, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil && errors.Is(missing, fs.ErrNotExist) {
			_ = os.Remove(opts.Dir) // fails if it holds anything
		}
	}()
	done, err := f.finished()
	switch {
	case err == nil && opts.Resume:
		return reportFinished(f, done, want)
	case err == nil:
		return Report{}, fmt.Errorf("%w: it already holds a finished export", ErrFolder)
	case !errors.Is(err, fs.ErrNotExist):
		return Report{}, err
	}
	return export(f)
}

// errUnfinished is the refusal of a folder with an unfinished export that is not to be resumed.
var errUnfinished = fmt.Errorf("%w: it holds an unfinished export: resume it or use another folder", ErrFolder)

func openFolder(dir string) (*folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder: %w", err)
	}
	lock, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the folder: %w", err), root.Close())
	}
	f := &folder{root: root, lock: lock}
	if err := filelock.Lock(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: another process uses it: %w", ErrFolder, err), f.Close())
	}
	return f, nil
}

func (f *folder) Close() error { return errors.Join(f.lock.Close(), f.root.Close()) }

// mustBeEmpty refuses a folder in which a new export could overwrite something.
func (f *folder) mustBeEmpty() error {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list the folder: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() != stateFile+newSuffix { // left by a run that was killed while it wrote its first file
			return fmt.Errorf("%w: it is not empty", ErrFolder)
		}
	}
	return nil
}

// save writes a JSON document atomically.
func (f *folder) save(name string, document any) error {
	text, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return f.replace(name, append(text, '\n'))
}

// replace writes a file atomically.
func (f *folder) replace(name string, text []byte) error {
	if err := f.write(name+newSuffix, os.O_TRUNC, text); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := f.root.Rename(name+newSuffix, name); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// write writes the text, flushed to the disk. mode is os.O_TRUNC or os.O_APPEND.
func (f *folder) write(name string, mode int, text []byte) error {
	out, err := f.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|mode, 0o640)
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return errors.Join(err, out.Sync(), out.Close())
}

func (f *folder) load(name string, document any) error {
	text, err := f.root.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(text, document)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// finished reads manifest.json. It returns fs.ErrNotExist if the file is missing, and ErrMismatch if it is invalid.
func (f *folder) finished() (manifest finished, err error) {
	text, err := f.root.ReadFile(manifestFile)
	if err != nil {
		return finished{}, fmt.Errorf("read %s: %w", manifestFile, err)
	}
	read, err := readManifest(bytes.NewReader(text), &url.URL{})
	if err == nil && read.Next != "" {
		err = malformed("it is a page of a manifest in pages")
	}
	if err == nil {
		err = json.Unmarshal(text, &manifest.run)
	}
	if err != nil {
		return finished{}, fmt.Errorf("%s: %w", manifestFile, err)
	}
	manifest.Manifest = *read
	return manifest, nil
}

// record adds a file to the journal, before the file gets its final name.
func (f *folder) record(url string, stored StoredFile) error {
	line, err := json.Marshal(journalEntry{StoredFile: stored, URL: url})
	if err != nil {
		return fmt.Errorf("encode the journal: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.write(journalFile, os.O_APPEND, append(line, '\n')); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// recorded returns the files of the journal that are in the folder, by URL. A line that a crash cut short is skipped;
// its file is downloaded again.
func (f *folder) recorded() (map[string]StoredFile, error) {
	found := make(map[string]StoredFile)
	journal, err := f.root.ReadFile(journalFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	for line := range bytes.Lines(journal) {
		var entry journalEntry
		if json.Unmarshal(line, &entry) != nil || entry.URL == "" {
			continue
		}
		if info, err := f.root.Stat(entry.File); err == nil && info.Size() == entry.Size {
			found[entry.URL] = entry.StoredFile
		}
	}
	return found, nil
}

// known returns the names of the files that the folder holds, finished or in parts, by URL and without .gz.
func (f *folder) known(recorded map[string]StoredFile) (map[string]string, error) {
	names := make(map[string]string)
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list the folder: %w", err)
	}
	for _, entry := range entries {
		var part meta
		name, ok := strings.CutSuffix(entry.Name(), metaSuffix)
		if ok && entry.Type().IsRegular() && f.load(entry.Name(), &part) == nil && part.URL != "" { // else it starts over
			names[part.URL] = name
		}
	}
	for url, stored := range recorded {
		names[url] = strings.TrimSuffix(stored.File, ".gz")
	}
	return names, nil
}

func (f *folder) remove(names ...string) error {
	var all error
	for _, name := range names {
		if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("remove %s: %w", name, err))
		}
	}
	return all
}

// removeExport removes every file of a cancelled export: no later run could finish it. The folder was empty before, so
// files with such names were written by this client.
func (f *folder) removeExport() error {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list the folder: %w", err)
	}
	var names []string
	for _, entry := range entries {
		name := strings.TrimSuffix(entry.Name(), newSuffix)
		ours := slices.Contains([]string{manifestFile, stateFile, journalFile, jwksFile}, name) ||
			signedName.MatchString(name) || isData(strings.TrimSuffix(strings.TrimSuffix(name, metaSuffix), partSuffix))
		if entry.Type().IsRegular() && ours {
			names = append(names, entry.Name())
		}
	}
	return f.remove(names...)
}

func isData(name string) bool {
	return strings.HasSuffix(name, ".ndjson") || strings.HasSuffix(name, ".ndjson.gz")
}
