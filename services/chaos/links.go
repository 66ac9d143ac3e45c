package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// link is the proxy through which one process reaches one server or service.
type link struct {
	from, to string

	mu    sync.Mutex
	proxy *toxiproxy.Proxy
}

// links are all links, by "from to".
type links struct {
	server *toxiproxy.ApiServer // the library's proxies need one; it does not listen
	all    map[string]*link
}

func newLinks() *links {
	return &links{
		server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), all: map[string]*link{},
	}
}

// add makes a link to the address.
func (l *links) add(from, to, address string) (*link, error) {
	made := &link{from: from, to: to, proxy: toxiproxy.NewProxy(l.server, from+" "+to, "127.0.0.1:0", address)}
	l.all[from+" "+to] = made
	return made, made.proxy.Start()
}

// between returns the links of which both names begin so, in the order of their names.
func (l *links) between(from, to string) []*link {
	var found []*link
	for _, name := range slices.Sorted(maps.Keys(l.all)) {
		each := l.all[name]
		if strings.HasPrefix(each.from, from) && strings.HasPrefix(each.to, to) {
			found = append(found, each)
		}
	}
	return found
}

// point makes all links to a server lead to another address. Open connections are closed.
func (l *links) point(to, address string) error {
	for _, each := range l.between("", to) {
		each.mu.Lock()
		err := each.proxy.Update(&toxiproxy.Proxy{Listen: each.proxy.Listen, Upstream: address, Enabled: true})
		each.mu.Unlock()
		if err != nil {
			return fmt.Errorf("link of %s to %s: %w", each.from, each.to, err)
		}
	}
	return nil
}

func (l *links) close() {
	for _, each := range l.all {
		each.cut()
	}
}

// address is where the process finds the server.
func (l *link) address() string { return l.proxy.Listen }

// rewrite returns the URL with the address of the link.
func (l *link) rewrite(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	u.Host = l.address()
	return u.String(), nil
}

// cut closes the connections of the link and refuses new ones, until mend.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxy.Stop()
}

func (l *link) mend() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proxy.Enabled {
		return nil
	}
	return l.proxy.Start()
}

// toxic has the attributes of a toxic, as toxiproxy names them.
type toxic map[string]any

// directions are those of a toxic: to the server, and from it.
var directions = []string{"upstream", "downstream"}

// poison adds a toxic of the type in both directions, until cure.
func (l *link) poison(kind string, attributes toxic) error {
	for _, direction := range directions {
		text, err := json.Marshal(map[string]any{
			"name": kind + direction, "type": kind, "stream": direction, "attributes": attributes,
		})
		if err != nil {
			return err
		}
		if _, err := l.proxy.Toxics.AddToxicJson(bytes.NewReader(text)); err != nil {
			return fmt.Errorf("%s on the link of %s to %s: %w", kind, l.from, l.to, err)
		}
	}
	return nil
}

func (l *link) cure(ctx context.Context, kind string) error {
	for _, direction := range directions {
		if err := l.proxy.Toxics.RemoveToxic(ctx, kind+direction); err != nil {
			return fmt.Errorf("%s on the link of %s to %s: %w", kind, l.from, l.to, err)
		}
	}
	return nil
}
