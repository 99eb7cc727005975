#include <cstdlib>
#include <new>

#include "kernels.hpp"

namespace rlsparse {

namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kSmallest = size_t(1) << 20;
constexpr size_t kKept = size_t(64) << 20;  // bytes that a thread keeps at most
}  // namespace

// A piece of memory; what is handed out follows it.
struct alignas(kAlignment) Scratch::Block {
    Block* next;
    size_t size;  // bytes that follow
};

namespace {

// The block that a thread keeps between calls.
struct Keeper {
    void* block = nullptr;
    ~Keeper() { std::free(block); }
};
thread_local Keeper keeper;

}  // namespace

Scratch::Scratch() {
    if (keeper.block) {
        blocks_ = static_cast<Block*>(keeper.block);
        free_ = blocks_->size;
        keeper.block = nullptr;
    }
}

// Keeps the largest block, which is the newest: each is larger than all before it.
Scratch::~Scratch() {
    if (blocks_ && blocks_->size <= kKept && !keeper.block) {
        Block* kept = blocks_;
        blocks_ = kept->next;
        kept->next = nullptr;
        keeper.block = kept;
    }
    while (blocks_) {
        Block* next = blocks_->next;
        std::free(blocks_);
        blocks_ = next;
    }
}

void* Scratch::take(size_t bytes) {
    if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > free_) {
        size_t size = blocks_ ? 2 * blocks_->size : kSmallest;
        if (size < bytes) size = bytes;
        void* memory = std::aligned_alloc(kAlignment, sizeof(Block) + size);
        if (!memory) throw std::bad_alloc();
        blocks_ = new (memory) Block{blocks_, size};
        free_ = size;
    }
    auto* end = reinterpret_cast<uint8_t*>(blocks_ + 1) + blocks_->size;
    void* place = end - free_;
    free_ -= bytes;
    return place;
}

}  // namespace rlsparse
