package bulkclient

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// What a folder holds beside the data files. A name of a data file ends in .ndjson or .ndjson.gz, so that none of
// these can be one.
const (
	manifestFile = "manifest.json" // of a finished export: written last
	stateFile    = "export.json"   // of an unfinished export: the job and the request
	journalFile  = "export.files"  // of an unfinished export: one Stored a line
	partSuffix   = ".part"         // a download as it came over the wire
	metaSuffix   = ".part.json"    // what the server said about it
	newSuffix    = ".new"          // a file that is still written
)

// Stored is what stands in the folder.
type Stored struct {
	File      string `json:"file"`      // name in the folder
	SHA256    string `json:"sha256"`    // hex, of the file as it stands there
	Size      int64  `json:"size"`      // bytes of the file as it stands there
	Bytes     int64  `json:"bytes"`     // without compression
	Resources int64  `json:"resources"` // lines
	URL       string `json:"-"`
}

// entry is one line of the journal.
type entry struct {
	Stored
	URL string `json:"url"`
}

// state is what a later run must know to go on.
type state struct {
	Base      string    `json:"base"`
	Group     string    `json:"group"`
	Types     []string  `json:"types"`
	KeepGzip  bool      `json:"keep_gzip"`
	StatusURL string    `json:"status_url"`
	IG        bool      `json:"ig"`
	Accepted  time.Time `json:"accepted"`
}

func (s state) job() Job { return Job{StatusURL: s.StatusURL, IG: s.IG} }

// sealed is the manifest.json of a finished folder: the server's manifest, with what was stored for every file.
type sealed struct {
	Manifest
	Export  state   `json:"export"`
	Seconds float64 `json:"seconds"` // that the run took which finished the export
}

// results are the files of the manifest as they were stored.
func (s *sealed) results() ([]result, error) {
	files, err := files(&s.Manifest)
	if err != nil {
		return nil, err
	}
	results := make([]result, 0, len(files))
	for i, item := range slices.Concat(s.Output, s.Deleted, s.Error) { // as files lists them
		if item.Local == nil {
			return nil, fmt.Errorf("%s does not say where %s is stored", manifestFile, files[i].Name)
		}
		results = append(results, result{file: files[i], stored: *item.Local})
	}
	return results, nil
}

// folder is the only place that a client writes to. An os.Root keeps every name inside it, whatever the name is. One
// process at a time holds it.
type folder struct {
	root *os.Root
	lock *os.File
	mu   sync.Mutex // guards the journal
}

func openFolder(dir string) (*folder, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder: %w", err)
	}
	lock, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the folder: %w", err), root.Close())
	}
	if err := lockFile(lock); err != nil {
		err = fmt.Errorf("%w: another process works in it: %w", ErrFolder, err)
		return nil, errors.Join(err, lock.Close(), root.Close())
	}
	return &folder{root: root, lock: lock}, nil
}

func (f *folder) Close() error { return errors.Join(f.lock.Close(), f.root.Close()) }

// mustBeEmpty refuses a folder in which a new export could overwrite something.
func (f *folder) mustBeEmpty() error {
	names, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list the folder: %w", err)
	}
	for _, name := range names {
		if name.Name() != stateFile+newSuffix { // of a run that was killed before it had anything else
			return fmt.Errorf("%w: it is not empty", ErrFolder)
		}
	}
	return nil
}

// save writes a JSON document under its name at once or not at all.
func (f *folder) save(name string, document any) (err error) {
	text, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	out, err := f.root.OpenFile(name+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = out.Write(append(text, '\n'))
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := f.root.Rename(name+newSuffix, name); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// load reads a JSON document. A missing one is fs.ErrNotExist.
func (f *folder) load(name string, document any) error {
	text, err := f.root.ReadFile(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := json.Unmarshal(text, document); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// sealed reads manifest.json. A missing one is fs.ErrNotExist, one that is no manifest ErrMismatch.
func (f *folder) sealed() (sealed, error) {
	text, err := f.root.ReadFile(manifestFile)
	if err != nil {
		return sealed{}, fmt.Errorf("read %s: %w", manifestFile, err)
	}
	if err := checkManifest(text); err != nil {
		return sealed{}, fmt.Errorf("%s: %w", manifestFile, err)
	}
	var finished sealed
	if err := json.Unmarshal(text, &finished); err != nil {
		return sealed{}, fmt.Errorf("%s: %w: %w", manifestFile, ErrMismatch, err)
	}
	return finished, nil
}

// record adds a file to the journal, before the file gets its final name.
func (f *folder) record(stored Stored) (err error) {
	line, err := json.Marshal(entry{Stored: stored, URL: stored.URL})
	if err != nil {
		return fmt.Errorf("encode the journal: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out, err := f.root.OpenFile(journalFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	_, err = out.Write(append(line, '\n'))
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// recorded returns the files of the journal that stand in the folder, by URL. A last line that a crash cut short is
// no entry; its file is downloaded again.
func (f *folder) recorded() (found map[string]Stored, err error) {
	found = make(map[string]Stored)
	in, err := f.root.Open(journalFile)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	reader := bufio.NewReader(in)
	for {
		line, err := reader.ReadBytes('\n')
		var one entry
		if json.Unmarshal(line, &one) == nil && one.URL != "" {
			info, err := f.root.Stat(one.File)
			if err == nil && info.Size() == one.Size {
				one.Stored.URL = one.URL
				found[one.URL] = one.Stored
			}
		}
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
	}
}

// remove deletes names that may be gone already.
func (f *folder) remove(names ...string) error {
	var all error
	for _, name := range names {
		if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("remove %s: %w", name, err))
		}
	}
	return all
}

// abandon removes everything that the export wrote: its job is gone, so that no later run could finish it. The folder
// was empty before, so that everything with the names that an export gives is ours.
func (f *folder) abandon() error {
	names, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list the folder: %w", err)
	}
	var ours []string
	for _, name := range names {
		if name.Type().IsRegular() && isOurs(name.Name()) {
			ours = append(ours, name.Name())
		}
	}
	return f.remove(ours...)
}

func isOurs(name string) bool {
	name = strings.TrimSuffix(name, newSuffix)
	if slices.Contains([]string{manifestFile, stateFile, journalFile}, name) {
		return true
	}
	return isData(strings.TrimSuffix(strings.TrimSuffix(name, metaSuffix), partSuffix))
}

// isData reports whether the name is one of a data file.
func isData(name string) bool {
	return strings.HasSuffix(name, ".ndjson") || strings.HasSuffix(name, ".ndjson.gz")
}
