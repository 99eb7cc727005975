// Decoding from lists of places, where 64 words cannot be compared at once.
// Included inside the namespace of one instruction set, which has defined `Simd`.
//
// The first pass lists the places of each context's words. The second one does not look at the base
// to find out what changed: the bits of a context's mask stand for the places in its list.

class PlaceLists {
  public:
    // The places of a tile's words, those of the names 1, 2 ... one after the other.
    struct Tile {
        const uint16_t* places;
        uint16_t counts[kMaxContexts + 1];  // by name
    };

    // `sparse`: few words are in contexts.
    PlaceLists(const Chunk& chunk, size_t named, bool sparse, Scratch& scratch)
        : named_(named),
          sparse_(sparse),
          scratch_(scratch),
          tiles_(scratch.array<Tile>(chunk.words / kTile + 1)),
          tile_(tiles_) {}

    // Adds a tile, and the words of each context to `counts`, by name.
    template <class W>
    void add(Tiles<W>& tiles, uint64_t* counts) {
        // Memory in pieces, because only now and then is there a place for each word.
        if (left_ < 2 * kTile) end_ = scratch_.array<uint16_t>(left_ = kPiece);
        tile_->places = end_;
        const size_t found = sparse_ ? sort_few(tiles) : sort(tiles.find_names(), tiles.groups());
        end_ += found, left_ -= found;
        for (size_t name = 1; name <= named_; ++name) counts[name] += tile_->counts[name];
        ++tile_;
    }

    const Tile* tiles() const { return tiles_; }

  private:
    static constexpr size_t kPiece = size_t(1) << 19;

    // Sorts the places of a tile, and returns how many are in contexts.
    size_t sort(const uint8_t* names, size_t groups) {
        PartCounts counts = {};
        count_parts(names, groups, named_, counts);
        return put(names, kPart, counts, [](size_t i) { return i; });
    }

    // As sort, where few words of the tile are in contexts.
    template <class W>
    size_t sort_few(Tiles<W>& tiles) {
        uint8_t names[kTile + kParts];
        uint16_t places[kTile + kParts];
        const size_t part = part_of(tiles.find_few(names, places));
        PartCounts counts = {};
        count_few(names, part, counts);
        return put(names, part, counts, [&](size_t i) { return places[i]; });
    }

    // Moves place(i) to the list of each name, of parts that follow each other. Places of words in
    // no context stand behind the others, and are overwritten.
    template <class Place>
    size_t put(const uint8_t* names, size_t part, const PartCounts& counts, Place place) {
        uint32_t next[kParts][kMaxContexts + 1], start = 0;
        for (size_t name = 1; name <= named_; ++name) {
            const uint32_t first = start;
            for (size_t p = 0; p < kParts; ++p) {
                next[p][name] = start;
                start += counts[p][name];
            }
            tile_->counts[name] = uint16_t(start - first);
        }
        for (size_t p = 0; p < kParts; ++p) next[p][0] = start + uint32_t(p * part);
        for (size_t i = 0; i < part; ++i) {
            for (size_t p = 0; p < kParts; ++p) {
                end_[next[p][names[p * part + i]]++] = uint16_t(place(p * part + i));
            }
        }
        return start;
    }

    const size_t named_;
    const bool sparse_;
    Scratch& scratch_;
    Tile* const tiles_;
    Tile* tile_;               // the next one
    uint16_t* end_ = nullptr;  // memory for its places
    size_t left_ = 0;
};

// The state of decoding one chunk.
template <class W>
class ListDecoder {
  public:
    ListDecoder(const Chunk& chunk, const Bounds& bounds, const uint64_t* numbers, Scratch& scratch)
        : chunk_(chunk),
          map_(chunk.width, chunk.order),
          contexts_(bounds, map_, scratch),
          numbers_(numbers),
          scratch_(scratch) {
        populous_.choose(chunk, contexts_, numbers, kFew);
    }

    const char* run(Span content, Result<W>& out) {
        PlaceLists lists(chunk_, populous_.named, populous_.is_sparse, scratch_);
        uint64_t counts[kMaxContexts + 1] = {};
        Tiles<W> tiles(chunk_, contexts_, scratch_);
        while (tiles.next()) lists.add(tiles, counts);
        if (const char* problem = coded_.read(content, chunk_, populous_, contexts_.number(),
                                              numbers_, counts, scratch_)) {
            return problem;
        }
        return write(lists, out);
    }

  private:
    static constexpr size_t kFew = 4;          // one word in so many is in a context, or few are
    static constexpr size_t kManyInTile = 16;  // likewise changed words

    // The steps of a tile that fit no byte, less 1.
    struct Wide {
        size_t number;
        uint16_t places[kTile];
        Signed<W> rests[kTile];
    };

    const char* write(const PlaceLists& lists, Result<W>& out) {
        alignas(64) int8_t steps[kTile];  // of each word; 0 if it did not change
        Wide wide;
        RowCheck rows(chunk_);
        const bool many = chunk_.rows.active || coded_.changed * kManyInTile >= chunk_.words;
        const PlaceLists::Tile* tile = lists.tiles();
        for (size_t start = 0; start < chunk_.words; start += kTile) {
            const size_t words = tile_words(chunk_, start);
            const W* base = static_cast<const W*>(chunk_.base) + start;
            W* result = out.tile(start);
            const WordMap<W> map = map_;
            if (result != base) std::memcpy(result, base, words * sizeof(W));
            wide.number = 0;
            if (many) {
                std::memset(steps, 0, sizeof steps);
                take(*tile++, wide, [&](size_t place, int8_t step) { steps[place] = step; });
                for (size_t i = 0; i < words; ++i)
                    result[i] = map.moved(result[i], Signed<W>(steps[i]));
            } else {
                prefetch<1>(result, chunk_.words - start, words);
                take(*tile++, wide, [&](size_t place, int8_t step) {
                    result[place] = map.moved(result[place], Signed<W>(step));
                });
            }
            for (size_t i = 0; i < wide.number; ++i) {
                W& word = result[wide.places[i]];
                word = map.moved(word, wide.rests[i]);
            }
            out.end_tile(start + words);
            if (chunk_.rows.active) add_rows(steps, words, rows);
        }
        return rows.finish();
    }

    // Calls move(place, step) for each changed word of a tile; the wide ones move by 1 first.
    template <class Move>
    void take(const PlaceLists::Tile& tile, Wide& wide, Move move) {
        const uint16_t* places = tile.places;
        for (size_t name = 1; name <= populous_.named; ++name) {
            Mask mask = coded_.masks[name];
            const int8_t* near = coded_.steps.near + coded_.places.near[name];
            for (size_t left = tile.counts[name]; left;) {
                const size_t number = left < 64 ? left : 64;
                for (uint64_t bits = mask.take(int(number)) & inside_group(left, 0); bits;
                     bits &= bits - 1) {
                    const size_t place = places[__builtin_ctzll(bits)];
                    int8_t step = *near++;
                    if (step == 0) {
                        step = 1;
                        wide.places[wide.number] = uint16_t(place);
                        const W own = W(coded_.steps.wide[coded_.places.wide[name]++]);
                        wide.rests[wide.number++] = Signed<W>(W(own - 1));
                    }
                    move(place, step);
                }
                places += number;
                left -= number;
            }
            coded_.masks[name].place = mask.place;
            coded_.places.near[name] = uint64_t(near - coded_.steps.near);
        }
    }

    static void add_rows(const int8_t* steps, size_t words, RowCheck& rows) {
        uint64_t changed[kGroups];
        for (size_t g = 0; g < kGroups; ++g) {
            changed[g] = ~Simd::equal(reinterpret_cast<const uint8_t*>(steps) + g * 64, 0);
        }
        rows.add_tile(changed, words);
    }

    const Chunk& chunk_;
    const WordMap<W> map_;
    Contexts<W> contexts_;
    Populous populous_;
    const uint64_t* numbers_;
    Scratch& scratch_;
    Coded<W> coded_;
};
