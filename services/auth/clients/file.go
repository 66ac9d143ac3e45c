package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/goccy/go-yaml"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// maxFile is the size limit of the file, in bytes. More clients fit into Redis.
const maxFile = 4 << 20

// File is a client file. Its methods may be called from any goroutine.
type File struct {
	path string

	mu      sync.Mutex
	seen    fs.FileInfo // of the file that was read
	clients map[string]token.Client
	problem error // why it could not be read
}

// OpenFile reads the file and refuses everything that docs/auth.md does not allow.
func OpenFile(path string) (*File, error) {
	f := &File{path: path}
	if f.load(); f.problem != nil {
		return nil, fmt.Errorf("clients: %w", f.problem)
	}
	return f, nil
}

// Client returns a client, or export.ErrNotFound when the file has none of that id.
func (f *File) Client(id string) (token.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.refresh(); err != nil {
		return token.Client{}, err
	}
	client, ok := f.clients[id]
	if !ok {
		return token.Client{}, fmt.Errorf("client: %w", export.ErrNotFound)
	}
	return client, nil
}

// IDs are the clients' ids, in no particular order.
func (f *File) IDs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.clients))
}

// Check reports whether the file can be read.
func (f *File) Check() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refresh()
}

// refresh reads the file again if it changed. The lock is held.
func (f *File) refresh() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return fmt.Errorf("clients: %w: %w", export.ErrUnavailable, err)
	}
	if f.seen == nil || !configfile.SameContent(info, f.seen) {
		f.load()
	}
	if f.problem != nil {
		return fmt.Errorf("clients: %w: %w", export.ErrUnavailable, f.problem)
	}
	return nil
}

// load reads the file and sets clients or problem. The lock is held, or f is not shared yet.
func (f *File) load() {
	f.clients, f.seen, f.problem = nil, nil, errors.New("not read") // if the decoder panics
	var data []byte
	if data, f.seen, f.problem = configfile.ReadStable(f.path, maxFile); f.problem != nil {
		return
	}
	if f.clients, f.problem = parse(data); f.problem != nil {
		f.problem = fmt.Errorf("%s: %w", filepath.Base(f.path), f.problem)
	}
}

// entry is a client in the file. Its jwks may be JSON, which is YAML.
type entry struct {
	ID           string         `yaml:"id"`
	JWKSURL      string         `yaml:"jwks_url"`
	JWKS         map[string]any `yaml:"jwks"`
	SecretSHA256 string         `yaml:"secret_sha256"`
	Scope        string         `yaml:"scope"`
}

func parse(data []byte) (map[string]token.Client, error) {
	var document struct {
		Clients *[]entry `yaml:"clients"`
	}
	if err := configfile.DecodeYAML(data, &document); err != nil {
		return nil, located(err)
	}
	if document.Clients == nil {
		return nil, errors.New("has no list of clients; an empty list is clients: []")
	}
	clients := make(map[string]token.Client, len(*document.Clients))
	var problems []error
	for i, e := range *document.Clients {
		client := token.Client{ID: e.ID, JWKSURL: e.JWKSURL, SecretHash: e.SecretSHA256, Scope: e.Scope}
		if e.JWKS != nil {
			text, err := json.Marshal(e.JWKS)
			if err != nil {
				return nil, fmt.Errorf("client %d: jwks is not JSON", i+1)
			}
			client.JWKS = text
		}
		if err := client.Check(); err != nil {
			problems = append(problems, fmt.Errorf("client %d: %w", i+1, err))
		}
		if _, twice := clients[client.ID]; twice {
			problems = append(problems, fmt.Errorf("client %d: duplicate id", i+1))
		}
		clients[client.ID] = client
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return clients, nil
}

// located returns the line of the decoder's error without its text, which quotes the file.
func located(err error) error {
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil {
		return fmt.Errorf("line %d: not in the format of docs/auth.md", at.GetToken().Position.Line)
	}
	return errors.New("not in the format of docs/auth.md")
}
