package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/goccy/go-yaml"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// maxFile is the size limit of the file, in bytes. Larger registries belong in Redis.
const maxFile = 4 << 20

// File is a client file. Its methods may be called from any goroutine.
type File struct {
	cached *configfile.Cached[map[string]token.Client] // by id
}

// OpenFile reads the file and rejects anything that docs/auth.md does not allow.
func OpenFile(path string) (*File, error) {
	cached, err := configfile.Open(path, maxFile, parse)
	if err != nil {
		return nil, fmt.Errorf("clients: %w", err)
	}
	return &File{cached}, nil
}

func (f *File) read() (map[string]token.Client, error) {
	clients, err := f.cached.Get()
	if err != nil {
		return nil, fmt.Errorf("clients: %w: %w", export.ErrUnavailable, err)
	}
	return clients, nil
}

// Client returns a client, or export.ErrNotFound if the file does not contain the id.
func (f *File) Client(id string) (token.Client, error) {
	clients, err := f.read()
	if err != nil {
		return token.Client{}, err
	}
	client, ok := clients[id]
	if !ok {
		return token.Client{}, fmt.Errorf("client: %w", export.ErrNotFound)
	}
	return client, nil
}

// IDs returns the clients' ids in no particular order, or none while the file cannot be read.
func (f *File) IDs() []string {
	clients, _ := f.read()
	return slices.Collect(maps.Keys(clients))
}

// Check reports whether the file can be read.
func (f *File) Check() error {
	_, err := f.read()
	return err
}

// entry is a client in the file. Its jwks may be JSON, which is YAML.
type entry struct {
	ID           string         `yaml:"id"`
	JWKSURL      string         `yaml:"jwks_url"`
	JWKS         map[string]any `yaml:"jwks"`
	SecretSHA256 hashes         `yaml:"secret_sha256"`
	Scope        string         `yaml:"scope"`
}

// hashes is one hash or a list of hashes.
type hashes []string

// UnmarshalYAML implements yaml.InterfaceUnmarshaler.
func (h *hashes) UnmarshalYAML(unmarshal func(any) error) error {
	var one string
	if unmarshal(&one) == nil {
		*h = hashes{one}
		return nil
	}
	return unmarshal((*[]string)(h))
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
		client := token.Client{ID: e.ID, JWKSURL: e.JWKSURL, Scope: e.Scope}
		if len(e.SecretSHA256) > 0 {
			client.SecretHash, client.MoreSecretHashes = e.SecretSHA256[0], e.SecretSHA256[1:]
		}
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
